"""Prompts from any JSONL, CSV or Parquet file with two columns: what is asked, and whether it is harmful.

Usual names of columns and usual words for labels are recognised; whatever else a file says is told by a mapping of
prompt fields to columns, `prompt=goal,label=is_bad`. A label may be the word `harmful` or `benign` for all rows, and
`harmful=VALUE|VALUE` names the values that mean harmful, all others meaning benign.
"""

import csv
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demur.errors import FileError, PromptError, SettingsError, first_line
from demur.files import nearest, read_jsonl
from demur.records import Label, Prompt, PromptSet

SUFFIXES = (".jsonl", ".csv", ".parquet")

Row = Mapping[str, Any]

ASKED = (
    "prompt",
    "messages",
    "goal",
    "question",
    "instruction",
    "forbidden_prompt",
    "behavior",
    "behaviour",
    "query",
    "request",
    "user_input",
    "input",
    "text",
    "conversation",
    "turns",
)
"""Names of the column with the request, the surest first."""

LABELLED = (
    "label",
    "prompt_harm_label",
    "prompt_label",
    "is_harmful",
    "harmful",
    "is_unsafe",
    "unsafe",
    "is_safe",
    "safe",
    "is_toxic",
    "toxic",
    "toxicity",
    "type",
)
"""Names of the column with the label; it counts only if its values mean something here."""

SAFE_NAMES = ("is_safe", "safe")
"""Columns where yes means benign."""

LABELS: dict[str, Label] = {"harmful": "harmful", "benign": "benign"}
YES_OR_NO: dict[str, Label] = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), "harmful"),
    **dict.fromkeys(("0", "0.0", "false", "no"), "benign"),
}
WORDS: dict[str, Label] = {
    **YES_OR_NO,
    **dict.fromkeys(("harmful", "unsafe", "toxic", "malicious"), "harmful"),
    **dict.fromkeys(("benign", "safe", "harmless", "unharmful"), "benign"),
    # XSTest's types; its unsafe ones all begin with `contrast_`.
    **dict.fromkeys(
        (
            "homonyms",
            "figurative_language",
            "safe_targets",
            "safe_contexts",
            "definitions",
            "nons_group_real_discr",
            "real_group_nons_discr",
            "historical_events",
            "privacy_public",
            "privacy_fictional",
        ),
        "benign",
    ),
}

FIELDS = tuple(f for f in Prompt.model_fields if f not in ("prompt", "messages", "label", "extra"))
"""Fields of a prompt that are taken from a column of the same name, whatever its case."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL, CSV or Parquet file.

    Raises:
        FileError: no such file, of another kind, broken, or Parquet without pyarrow.
    """
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".jsonl":
        return list(read_jsonl(path))
    if not path.exists():
        raise FileError(f"{path} does not exist{nearest(path)}")
    raise FileError(f"{path} is no prompt file; give one that ends in {', '.join(SUFFIXES)}.")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [{k: v for k, v in row.items() if k} for row in csv.DictReader(file, strict=True)]
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist{nearest(path)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(
            f"{path} cannot be read as CSV ({error}); expected UTF-8 with a line of column names."
        ) from error


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileError(f"{path} does not exist{nearest(path)}")
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise FileError(f"reading {path} needs pyarrow; type pip install pyarrow, or give CSV or JSONL.") from error
    try:
        return parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FileError(f"{path} cannot be read as Parquet ({first_line(error)}).") from error


def parse_columns(text: str) -> dict[str, str]:
    """`prompt=goal,label=is_bad` as a mapping.

    Raises:
        SettingsError: not of that form, or a field that prompts do not have.
    """
    given = {}
    for part in filter(None, text.split(",")):
        field, equals, column = (s.strip() for s in part.partition("="))
        known = ("prompt", "label", "harmful", *FIELDS)
        if not equals or not column or field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(known)}."
            raise SettingsError(f"--columns {text}: `{part.strip()}` is not FIELD=COLUMN; {hint}")
        given[field] = column
    return given


def load_table(path: Path | str, columns: Mapping[str, str] | None = None) -> PromptSet:
    """The prompts of a JSONL, CSV or Parquet file; columns that a prompt does not have go to `extra`.

    Raises:
        FileError: a file that cannot be read.
        PromptError: no rows, or columns or labels that are not understood.
    """
    path = Path(path)
    return PromptSet.of(path.stem, to_prompts(read_rows(path), columns or {}, str(path)), str(path))


def to_prompts(rows: Sequence[Row], given: Mapping[str, str], where: str) -> list[dict[str, Any]]:
    """Rows with a prompt's own field names, in order.

    Raises:
        PromptError: columns or labels that are not understood.
    """
    if not rows:
        return []
    chosen = recognise(rows, given, where)
    label_of = _reader(rows, chosen["label"], given.get("harmful"), where)
    if "id" in chosen and len({str(row.get(chosen["id"])) for row in rows}) < len(rows):
        del chosen["id"]  # what is not unique is no id
    used = {*chosen.values(), "messages", "extra"}
    made = []
    for row in rows:
        before = row.get("extra")
        extra = {k: v for k, v in row.items() if k not in used} | (before if isinstance(before, dict) else {})
        fields = {f: str(row[c]) for f, c in chosen.items() if f in FIELDS and row.get(c) not in (None, "")}
        asked = request(row.get(chosen["prompt"])) or request(row.get("messages"))
        made.append({"extra": extra, "label": label_of(row)} | fields | asked)
    return made


def request(value: Any) -> dict[str, Any]:
    """`prompt` or `messages` from a cell: text, a conversation, or a list of turns, of which the first is asked.

    The answers to earlier turns are the model's own, so that a list of a user's turns is no conversation.
    """
    if isinstance(value, str):
        return {"prompt": value} if value.strip() else {}
    if isinstance(value, list) and value:
        return {"messages": value} if isinstance(value[0], dict) else request(value[0])
    return {}


def recognise(rows: Sequence[Row], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Which column is which field of a prompt. `label` may be a label instead of a column.

    Raises:
        PromptError: a column that is not there, or none that is understood.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    for field, column in given.items():
        if field != "harmful" and column not in names and not (field == "label" and column in LABELS):
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise PromptError(f"{where} has no column `{column}`, its columns are {', '.join(names)}{hint}")
    lower = {name.lower(): name for name in reversed(names)}
    prompt = given.get("prompt") or next((lower[n] for n in ASKED if n in lower), None)
    if prompt is None:
        raise PromptError(
            f"{where} has columns {', '.join(names)}, and none that is known to hold the request, such as `prompt`; "
            "say which one does with --columns prompt=NAME."
        )
    label = given.get("label") or _label_column(rows, lower, "harmful" in given)
    if label is None:
        raise PromptError(
            f"{where} has columns {', '.join(names)}, and none that says which rows are harmful, such as `label` "
            "(harmful or benign, 0 or 1, safe or unsafe); say it with --columns label=NAME, or label=harmful for all."
        )
    found = {field: lower[field] for field in FIELDS if field in lower and lower[field] not in (prompt, label)}
    return found | {f: c for f, c in given.items() if f in FIELDS} | {"prompt": prompt, "label": label}


def _label_column(rows: Sequence[Row], lower: Mapping[str, str], told: bool) -> str | None:
    there = [lower[name] for name in LABELLED if name in lower]
    # A column called `type` or `toxicity` may hold anything; one called `label` is it, and wrong values are an error.
    meant = (c for c in there if all(to_label(row[c], c) for row in rows if row.get(c) not in (None, "")))
    return next(meant, None) or next((c for c in there if told or c.lower() == "label"), None)


def to_label(value: Any, column: str = "label") -> Label | None:
    """What a cell says: harmful, benign, or None if it is not understood."""
    word = str(value).strip().lower()
    if word.startswith("contrast_"):
        return "harmful"
    label = WORDS.get(word)
    if column.lower() in SAFE_NAMES and word in YES_OR_NO:
        return "benign" if label == "harmful" else "harmful"
    return label


def _reader(rows: Sequence[Row], column: str, harmful: str | None, where: str) -> Callable[[Row], Label | None]:
    """The label of a row; None where its cell is empty."""
    if column in LABELS and not any(column in row for row in rows):
        return lambda _: LABELS[column]
    seen = {str(row[column]): row[column] for row in rows if row.get(column) not in (None, "")}
    if harmful is not None:
        bad = set(harmful.split("|"))
        if strange := bad - seen.keys():
            raise PromptError(
                f"{where}: column `{column}` never holds {', '.join(sorted(strange))}; it holds {_some(seen)}."
            )
        words: dict[str, Label | None] = {text: "harmful" if text in bad else "benign" for text in seen}
    else:
        words = {text: to_label(value, column) for text, value in seen.items()}
        if strange := [text for text, label in words.items() if label is None]:
            raise PromptError(
                f"{where}: column `{column}` holds {_some(strange)}, expected harmful or benign, 0 or 1, "
                "safe or unsafe; say which values mean harmful with --columns harmful=VALUE|VALUE."
            )
    return lambda row: words.get(str(row.get(column)))


def _some(values: Iterable[str]) -> str:
    """At most five values, to show in a sentence."""
    every = list(values)
    return ", ".join(repr(v[:40]) for v in every[:5]) + (" …" if len(every) > 5 else "")
