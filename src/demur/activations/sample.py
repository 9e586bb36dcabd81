"""Text sampled from the model itself: an SAE should know the words that the model writes, not only those it reads."""

import random
from collections.abc import Sequence

from pydantic import Field

from demur.config import Settings, locate
from demur.data.corpus import documents
from demur.errors import PromptError
from demur.models.chat import pad, tokens_and_roles
from demur.models.generation import GenerationSettings, reply_tokens
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Message


class SampleSettings(Settings):
    """How much text to sample from the model, in answer to what."""

    prompts: tuple[str, ...]
    """Files of conversations (their first turn is asked) or of prompts (JSONL with `prompt`)."""
    tokens: int = Field(gt=0)
    """Prompt and reply tokens together."""
    temperature: float = 1.0
    """Of the sampling."""
    max_new_tokens: int = 128
    """Longest reply."""
    batch: int = 64
    """Prompts at a time."""


def openings(paths: Sequence[str], seed: int) -> list[str]:
    """The first user turns of the files, without repetitions, in random order."""
    found: set[str] = set()
    for path in paths:
        for document in documents(locate(path)):
            text = document if isinstance(document, str) else document[0]["content"]
            if len(text) < 1500:
                found.add(text)
    order = sorted(found)
    random.Random(seed).shuffle(order)
    return order


def sample(lm: LanguageModel, settings: SampleSettings, length: int, seed: int) -> list[list[int]]:
    """Conversations of one turn and the model's sampled reply, as token sequences of at most `length`.

    Raises:
        PromptError: the files hold too few prompts for so many tokens.
    """
    rows: list[list[int]] = []
    left = settings.tokens
    prompts = openings(settings.prompts, seed)
    with bar("sampling text from the model", settings.tokens) as progress:
        for start in range(0, len(prompts), settings.batch):
            coded = [
                tokens_and_roles(lm, [Message(role="user", content=p)]) for p in prompts[start : start + settings.batch]
            ]
            how = GenerationSettings(
                max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed + start
            )
            for (ids, _), reply in zip(coded, reply_tokens(lm, pad(lm, coded), how), strict=True):
                row = (ids + reply)[:length][:left]
                if len(row) > 1:
                    rows.append(row)
                    left -= len(row)
                    progress.step(len(row))
            if left <= 1:
                return rows
    raise PromptError(
        f"{len(prompts)} prompts gave {settings.tokens - left} tokens, fewer than the {settings.tokens} asked for; "
        "name more files under `prompts`."
    )
