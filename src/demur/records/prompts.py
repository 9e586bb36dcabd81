"""Prompts: what is asked, and what should become of it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from demur.errors import PromptError
from demur.files import read_jsonl, write_jsonl
from demur.records.record import Record, evenly, first_problem

Label = Literal["harmful", "benign"]
LIKE_HARM = ("lookalike", "offensive")
"""Kinds of benign prompt that only look or sound harmful."""


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """One request, or one conversation that ends with the user's turn, and what should become of it."""

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    label: Label
    kind: str | None = None
    """What sort of row this is: harmful, lookalike, offensive, plain, mathematics …"""
    category: str | None = None
    source: str | None = None
    licence: str | None = None
    pair: str | None = None
    """Joins a harmful request to its benign twin."""
    family: str | None = None
    """The attack family, for jailbreaks."""
    goal: str | None = None
    """The plain request an attack wraps."""
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_prompt_and_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("messages must end with the user's turn")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The request as messages, whichever way it was given."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)


class SetOrigin(Record):
    """Where a named set came from and how its columns were read; of the whole set, also after `sample` and `where`."""

    name: str
    split: str
    where: str
    """A file or folder, or `hub:REPOSITORY@REVISION`."""
    columns: dict[str, dict[str, str]]
    """For each source: what became a prompt's field, and the column (or, in quotes, the word) it was made from."""
    hash: str
    """`PromptSet.hash` of the whole set."""
    n: int
    licence: str | None = None
    left_out: int = 0
    """Rows without a prompt or without a label that people agreed on."""
    moved: int = 0
    """Rows that the set calls harmful and the taxonomy merely offensive: label benign, kind offensive."""
    unknown: tuple[str, ...] = ()
    """Categories of the set that the taxonomy does not know."""


class PromptSet(Record):
    """Named rows with their labels; never empty."""

    name: str
    rows: tuple[Prompt, ...]
    origin: SetOrigin | None = None
    """Only of sets loaded by name."""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a JSONL file whose rows have `prompt` or `messages` and `label`; other columns are optional.

        Files whose columns are called otherwise, CSV and Parquet: `demur.data.tables`.

        Raises:
            FileError: no such file, or a line that is not a JSON object.
            PromptError: a row without what it needs, or no row at all.
        """
        return cls.of(Path(path).stem, read_jsonl(Path(path)), str(path))

    @classmethod
    def of(cls, name: str, raw: Iterable[dict[str, Any]], where: str) -> Self:
        """A set from rows with `prompt` or `messages` and `label`; `where` is named in errors.

        Columns that `Prompt` does not name go to `extra`; rows without an id get `NAME-NUMBER`.

        Raises:
            PromptError: a row without what it needs, or no row at all.
        """
        rows = []
        for number, row in enumerate(raw, 1):
            known = {k: v for k, v in row.items() if k in Prompt.model_fields and k != "extra" and v is not None}
            other = {k: v for k, v in row.items() if k not in Prompt.model_fields}
            known = {"id": f"{name}-{number}"} | known | {"extra": other | (row.get("extra") or {})}
            try:
                rows.append(Prompt.model_validate(known))
            except ValidationError as error:
                raise PromptError(
                    f"{where}, row {number}: {first_problem(error)}; a row needs `prompt` (text) or `messages`, "
                    "and `label` (harmful or benign)."
                ) from error
        if not rows:
            raise PromptError(f"{where} holds no prompts; give a file with at least one row.")
        return cls(name=name, rows=tuple(rows))

    @property
    def hash(self) -> str:
        """Twelve hex digits of the prompts and labels: the same wherever and in whatever order the set was read."""
        body = sorted([row.label, *([m.role, m.content] for m in row.conversation)] for row in self.rows)
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Writes the rows as JSONL, empty columns left out."""
        write_jsonl(path, self.rows)

    def sample(self, n: int) -> Self:
        """An even sample of `n` rows (all of them if there are fewer): every k-th row, in order."""
        return self.model_copy(update={"rows": tuple(evenly(self.rows, n))})

    def where(self, **columns: str) -> Self:
        """The rows whose columns have the given values, e.g. `where(label="harmful")`.

        Raises:
            PromptError: no row has them.
        """
        rows = tuple(r for r in self.rows if all(getattr(r, k) == v for k, v in columns.items()))
        if not rows:
            raise PromptError(f"{self.name} has no row with {', '.join(f'{k} = {v}' for k, v in columns.items())}.")
        return self.model_copy(update={"rows": rows})
