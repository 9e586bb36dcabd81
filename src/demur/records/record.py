"""The base of all records: frozen, no unknown keys; and reading one from a file in one sentence of error."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from demur.errors import DemurError, FileError
from demur.files import read_jsonl


class Record(BaseModel):
    """A frozen value that accepts no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


R = TypeVar("R", bound=Record)
T = TypeVar("T")


def evenly(rows: Sequence[T], n: int) -> list[T]:
    """`n` rows (all of them if there are fewer), evenly spaced and in order."""
    return [rows[i * len(rows) // n] for i in range(n)] if n < len(rows) else list(rows)


def evenly_of(groups: Iterable[Sequence[T]], count: int) -> list[T]:
    """At most `count` rows, as evenly over the groups as they allow, the smallest first."""
    # One group that has thousands would be all there is.
    found: list[T] = []
    left = sorted(groups, key=len)
    for i, group in enumerate(left):
        found += evenly(group, (count - len(found)) // (len(left) - i))
    return found


def parse(kind: type[R], raw: Any, where: Path | str, error: type[DemurError]) -> R:
    """Validates `raw` as a record, turning the first problem into one sentence that names the nearest known key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem, kind)}.") from problem


def read_rows(kind: type[R], path: Path, needed: str) -> list[R]:
    """The rows of a JSONL file as records; columns that the record does not have are passed over.

    Args:
        kind: Of each row.
        path: The file.
        needed: What a row must have, for the error, such as "id, turns and label".

    Raises:
        FileError: no such file, a row that is none of these, or no row at all.
    """
    found = []
    for number, raw in enumerate(read_jsonl(path), 1):
        known = {k: v for k, v in raw.items() if k in kind.model_fields and v is not None}
        found.append(parse(kind, known, f"{path}, row {number}", FileError))
    if not found:
        raise FileError(f"{path} holds no rows; give some with {needed}.")
    return found


def first_problem(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first validation error in words."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and kind is not None:
        near = difflib.get_close_matches(key.split(".")[-1], list(kind.model_fields), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(kind.model_fields)}"
        return f"unknown key `{key}`; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"`{key}`: {message[:1].lower()}{message[1:]} (given: {json.dumps(first['input'], default=str)[:80]})"
