"""Text for SAE training: files of documents and conversations → token sequences, mixed by stated budgets.

Each document starts at position 0, as in use, and is cut into sequences of at most `length` tokens. Order and mixture
depend on the seed alone, so that a position in the stream is one number.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from demur.config import Settings, locate
from demur.data.refusals import refusals
from demur.errors import FileError, PromptError, SettingsError
from demur.files import nearest
from demur.records import PromptSet


class Source(Settings):
    """One file of text and how much of it to take."""

    path: str
    """A JSONL file, gzipped or not, whose rows have `text` or `messages`; relative paths are looked up in the data
    folder (`DEMUR_DATA`) first, then here."""
    tokens: int = Field(gt=0)
    """How many tokens to take, from documents drawn at random."""
    refused: bool = False
    """The file holds prompts: take the harmful ones, each answered with a refusal that we wrote."""


def documents(path: Path) -> Iterator[str | list[dict[str, str]]]:
    """The texts, conversations or prompts of a JSONL file, gzipped or not.

    Raises:
        FileError: no such file, not gzip, not JSONL, or a row without text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                document = row.get("messages") or row.get("text") or row.get("prompt")
                if not document:
                    raise FileError(f"{path}, row {number} has neither `text`, `messages` nor `prompt`.")
                yield document
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist{nearest(path)}") from error
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise FileError(f"{path} is not a JSONL file of texts ({error}).") from error


def refused_conversations(path: Path, seed: int) -> Iterator[list[dict[str, str]]]:
    """The harmful prompts of a prompt set, each with a refusal that we wrote.

    Raises:
        PromptError: no prompt set, or one without harmful prompts.
    """
    for row, reply in zip(PromptSet.load(path).where(label="harmful").rows, refusals(seed), strict=False):
        yield [m.model_dump() for m in row.conversation] + [{"role": "assistant", "content": reply}]


def tokenise(tokenizer: Any, document: str | list[dict[str, str]]) -> list[int]:
    """Token ids of a document; a conversation is put into the chat template.

    Raises:
        SettingsError: a conversation, but the tokenizer has no template.
    """
    if isinstance(document, str):
        return tokenizer(document)["input_ids"]
    if tokenizer.chat_template is None:
        raise SettingsError("the text holds conversations, but the model has no chat template; give plain text.")
    return tokenizer(tokenizer.apply_chat_template(document, tokenize=False), add_special_tokens=False)["input_ids"]


class Sequences:
    """Token sequences of different lengths, kept flat: sequence i is `tokens[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.tokens, self.offsets = tokens, offsets

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray]) -> "Sequences":
        """Sequences from lists of token ids."""
        tokens = np.concatenate([np.asarray(r, dtype=np.int32) for r in rows])
        return cls(tokens, np.concatenate([[0], np.cumsum([len(r) for r in rows])]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def split(self, at: int) -> "tuple[Sequences, Sequences]":
        """The first `at` sequences, and the others."""
        middle = self.offsets[at]
        return (
            Sequences(self.tokens[:middle], self.offsets[: at + 1]),
            Sequences(self.tokens[middle:], self.offsets[at:] - middle),
        )

    def lengths(self) -> np.ndarray:
        """Tokens in each sequence."""
        return np.diff(self.offsets)


def drawn(source: Source, seed: int) -> list[str | list[dict[str, str]]]:
    """All documents of a source in the order in which training takes them; those at the end it does not come to.

    Raises:
        FileError, PromptError: not a file of texts, or of prompts.
    """
    path = locate(source.path)
    pool = list(refused_conversations(path, seed) if source.refused else documents(path))
    random.Random(f"{seed} {source.path}").shuffle(pool)
    return pool


def take(tokenizer: Any, source: Source, length: int, seed: int, last: bool = False) -> list[np.ndarray]:
    """Sequences of at most `length` tokens from documents of one source in random order, up to its budget.

    With `last`, from the end of that order: what training with the same seed has not come to, if it left anything.

    Raises:
        PromptError: the source holds less text than asked for.
    """
    path, pool = locate(source.path), drawn(source, seed)
    if last:
        pool.reverse()
    rows: list[np.ndarray] = []  # of 4 bytes a token; a list of numbers takes ten times that
    left = source.tokens
    for document in pool:
        ids = tokenise(tokenizer, document)
        for start in range(0, len(ids), length):
            row = ids[start : start + length][:left]
            if len(row) > 1:
                rows.append(np.asarray(row, dtype=np.int32))
                left -= len(row)
        if left <= 1:
            return rows
    raise PromptError(f"{path} holds {source.tokens - left} tokens, fewer than the {source.tokens} asked for.")


def batches(lengths: np.ndarray, tokens: int, seed: int) -> list[list[int]]:
    """Groups of sequence numbers in random order, about `tokens` tokens each.

    Sequences of like length go together, within windows small enough to stay well mixed: less padding, same mixture.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    groups: list[list[int]] = []
    for start in range(0, len(order), 512):
        window = sorted(order[start : start + 512], key=lambda i: -lengths[i])
        made: list[list[int]] = []
        for i in window:
            if not made or (len(made[-1]) + 1) * lengths[made[-1][0]] > tokens:
                made.append([])
            made[-1].append(i)
        rng.shuffle(made)
        groups += made
    return groups
