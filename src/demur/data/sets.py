"""Prompt sets by name: from the data folder, else from the hub, with the taxonomy's names and where they came from.

In the data folder a set is, in this order: a file `NAME.jsonl`, `.csv` or `.parquet`; a folder `NAME` laid out as its
repository on the hub; rows of `prompts/test.jsonl` (`dev.jsonl`, `train.jsonl`) with its `source`.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demur.config import data_folder
from demur.data import hub
from demur.data.categories import kind_of, placed
from demur.data.chats import CHATS, chat_prompts
from demur.data.prompts import Split, shipped_prompts
from demur.data.registry import NAMES, SETS, NamedSet, Part
from demur.data.tables import LABELLED, SUFFIXES, read_rows, request, to_label, to_prompts
from demur.data.wrappers import WRAPPERS, wrapped_prompts
from demur.errors import DemurError, FileError, PromptError
from demur.records import Prompt, PromptSet, Record, SetOrigin

ROWS: dict[Split, str] = {
    "test": "prompts/test.jsonl",
    "validation": "prompts/dev.jsonl",
    "train": "prompts/train.jsonl",
}


SHIPPED: dict[str, Callable[[Split], PromptSet]] = {
    "demur": shipped_prompts,
    WRAPPERS: wrapped_prompts,
    CHATS: chat_prompts,
}
"""The sets that we wrote."""


@dataclass(frozen=True)
class Found:
    """Rows of a set as prompts' fields, and how they were come by."""

    rows: list[dict[str, Any]]
    where: str
    columns: dict[str, dict[str, str]]
    left_out: int = 0


class Reach(Record):
    """Where a named set can be had from here."""

    name: str
    about: str
    licence: str
    splits: tuple[Split, ...]
    where: str | None = None
    """None if it cannot be had."""
    how: str | None = None
    """How to get it then."""
    n: int | None = None
    """None too if it would first have to be fetched."""
    hash: str | None = None


def named_set(name: str, data_dir: Path | str | None = None, split: Split | None = None) -> PromptSet:
    """A prompt set by name; `category` holds the taxonomy's name, `extra["category"]` the set's own.

    `split` is by default the one for measuring: test, and train for sets that are only for fitting.

    Raises:
        PromptError: no set of that name, no such split, or columns that are not the set's.
        FileError: the set is not in the folder and cannot be had from the hub; the message says how to get it.
    """
    spec = named(name)
    split = split or spec.splits[0]
    folder = data_folder(data_dir)
    return _made(spec, split, in_folder(spec, split, folder) or from_hub(spec, split, folder))


def _made(spec: NamedSet, split: Split, found: Found) -> PromptSet:
    plain = PromptSet.of(spec.name, found.rows, found.where)
    unknown = {row.category for row in plain.rows if row.category and kind_of(row.source, row.category) is None}
    made = plain.model_copy(update={"rows": tuple(placed(row) for row in plain.rows)})
    origin = SetOrigin(
        name=spec.name,
        split=split,
        where=found.where,
        columns=found.columns,
        hash=made.hash,
        n=len(made.rows),
        licence=spec.licence,
        left_out=found.left_out,
        moved=sum("label" in row.extra for row in made.rows if row.kind == "offensive"),
        unknown=tuple(sorted(unknown)),
    )
    return made.model_copy(update={"origin": origin})


def survey(data_dir: Path | str | None = None) -> Iterator[Reach]:
    """All sets and where each can be had from here. The hub is asked about those that are not in the data folder.

    Raises:
        FileError: the data folder given is none.
    """
    folder = data_folder(data_dir)
    down: hub.HubError | None = None
    for spec in SETS:
        split = spec.splits[0]
        known = {"name": spec.name, "about": spec.about, "licence": spec.licence, "splits": spec.splits}
        try:
            found = in_folder(spec, split, folder) or _in_cache(spec, split)
            if found is not None:
                made = _made(spec, split, found)
                yield Reach(**known, where=found.where, n=len(made.rows), hash=made.hash)
                continue
            if down:
                raise down
            hub.check(spec.repo)
            yield Reach(**known, where=f"hub:{spec.repo}")
        except hub.HubError as error:
            down = error if error.why in ("network", "extra") else None
            yield Reach(**known, how=how(spec, split, error))
        except DemurError as error:
            yield Reach(**known, how=str(error))


def _in_cache(spec: NamedSet, split: Split) -> Found | None:
    parts = [part for part in spec.parts if part.split == split]
    try:
        snapshot = hub.fetch(spec.repo, [part.files for part in parts], cached=True)
    except hub.HubError:
        return None
    if not all(any(snapshot.glob(part.files)) for part in parts):
        return None
    return from_copy(spec, parts, snapshot, _on_hub(spec, snapshot))


def _on_hub(spec: NamedSet, snapshot: Path) -> str:
    return f"hub:{spec.repo}@{snapshot.name[:12]}"


def named(name: str) -> NamedSet:
    """What is known of a set.

    Raises:
        PromptError: nothing.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(NAMES)}."
        raise PromptError(f"there is no prompt set '{name}'; {hint}")
    return NAMES[name]


def in_folder(spec: NamedSet, split: Split, folder: Path) -> Found | None:
    """The set as the data folder has it, or as we ship it; None if it is not there.

    Raises:
        FileError, PromptError: it is there and cannot be read.
    """
    if not spec.parts:
        rows = [row.model_dump(exclude_none=True) for row in SHIPPED[spec.name](split).rows]
        return Found(rows, f"shipped with demur, {split}", {spec.name: _own_columns(rows)})
    parts = [part for part in spec.parts if part.split == split]
    for suffix in SUFFIXES if parts else ():
        if (path := folder / f"{spec.name}{suffix}").is_file():
            return _one_file(spec, parts, path)
    copy = folder / spec.name
    if parts and copy.is_dir() and all(any(copy.glob(part.files)) for part in parts):
        return from_copy(spec, parts, copy, str(copy))
    if spec.file and split == "test" and (path := folder / spec.file).is_file():
        return _one_file(spec, parts, path)
    if (path := folder / ROWS[split]).is_file():
        sources = {part.source for part in spec.parts}
        if rows := [row for row in read_rows(path) if row.get("source") in sources]:
            there = dict.fromkeys(row["source"] for row in rows)
            return Found(rows, str(path), {s: _own_columns([r for r in rows if r["source"] == s]) for s in there})
    return None


def from_hub(spec: NamedSet, split: Split, folder: Path) -> Found:
    """The set from the hub.

    Raises:
        FileError: it cannot be had; the message says how to get it.
        PromptError: the set has no such split.
    """
    parts = [part for part in spec.parts if part.split == split]
    if not parts:
        raise PromptError(
            f"'{spec.name}' has no split {split}, neither in {folder} nor on the hub; it has {', '.join(spec.splits)}."
        )
    try:
        snapshot = hub.fetch(spec.repo, [part.files for part in parts])
    except hub.HubError as error:
        raise FileError(f"'{spec.name}' is not in the data folder {folder}, and {how(spec, split, error)}") from error
    return from_copy(spec, parts, snapshot, _on_hub(spec, snapshot))


def how(spec: NamedSet, split: Split, error: hub.HubError) -> str:
    """How to get a set that cannot be had, given why not."""
    patterns = dict.fromkeys(f"'{part.files}'" for part in spec.parts if part.split == split)
    command = f"hf download {spec.repo} --repo-type dataset --include {' '.join(patterns)}"
    if error.why in ("gated", "missing"):
        return f"{error}."
    if error.why == "extra":
        return f"{error}, or put it into the data folder as {spec.name}.jsonl, .csv or .parquet."
    token = f" and you have access to https://huggingface.co/datasets/{spec.repo}" if spec.gated else ""
    return f"{error}; where it can{token}, type `{command} --local-dir DIR/{spec.name}`, then give --data-dir DIR."


def from_copy(spec: NamedSet, parts: Sequence[Part], folder: Path, where: str) -> Found:
    """The set from a folder laid out as its repository on the hub.

    Raises:
        FileError: a file is missing or cannot be read.
        PromptError: columns that are not the set's.
    """
    read: dict[Path, list[dict[str, Any]]] = {}
    tables = []
    for part in parts:
        paths = sorted(folder.glob(part.files))
        if not paths:
            raise FileError(f"{where} holds no {part.files}; the set '{spec.name}' has moved: get that file by hand.")
        if paths[0] not in read:
            read[paths[0]] = read_rows(paths[0])
        tables.append((part, read[paths[0]], str(paths[0])))
    return _by_parts(spec, tables, where)


def _one_file(spec: NamedSet, parts: Sequence[Part], path: Path) -> Found:
    rows = read_rows(path)
    names = {name for row in rows for name in row}
    if len({part.files for part in parts}) == 1 and all(_needed(part) <= names for part in parts):
        return _by_parts(spec, [(part, rows, str(path)) for part in parts], str(path))
    labels = {part.label for part in parts}
    told = any(name.lower() in LABELLED for name in names)
    given = {"label": label} if len(labels) == 1 and not told and (label := next(iter(labels))) else {}
    made = to_prompts(rows, given, str(path))
    for row in made:
        part = next((p for p in parts if p.label in (None, row["label"])), parts[0])
        row.setdefault("source", part.source)
        row.setdefault("licence", spec.licence)
        row.setdefault("kind", "harmful" if row["label"] == "harmful" else part.kind)
    return Found(made, str(path), {spec.name: _own_columns(made) | given})


def _by_parts(spec: NamedSet, tables: Sequence[tuple[Part, list[dict[str, Any]], str]], where: str) -> Found:
    rows: list[dict[str, Any]] = []
    columns: dict[str, dict[str, str]] = {}
    left_out = 0
    for part, table, path in tables:
        names = list(dict.fromkeys(name for row in table for name in row))
        if missing := _needed(part) - set(names):
            raise PromptError(
                f"{path} has columns {', '.join(names)}, and '{spec.name}' should have {', '.join(sorted(missing))}; "
                "it has changed: read it with --prompts FILE --columns prompt=NAME,label=NAME."
            )
        wanted = [r for r in table if all(str(r[c]).lower() == str(v).lower() for c, v in part.where.items())]
        made = [row for n, raw in enumerate(wanted) if (row := _row(part, raw, n, spec.licence)) is not None]
        rows += made
        left_out += len(wanted) - len(made)
        columns[part.source] = part.columns | ({"label": f'"{part.label}"'} if part.label else {})
    return Found(rows, where, columns, left_out)


def _row(part: Part, raw: dict[str, Any], number: int, licence: str) -> dict[str, Any] | None:
    asked = request(raw[part.columns["prompt"]])
    label = part.label or to_label(raw[part.columns["label"]])
    if not asked or label is None:
        return None
    made = {"id": f"{part.source}/{number}", "source": part.source, "licence": licence, "label": label, **asked}
    made["kind"] = "harmful" if label == "harmful" else part.kind
    if (own := raw.get(part.columns.get("category", ""))) not in (None, ""):
        made["category"] = str(own)
    if "pair" in part.columns:
        made["pair"] = f"{part.pair}{raw[part.columns['pair']]}"
    return made


def _needed(part: Part) -> set[str]:
    return {*part.columns.values(), *part.where}


def _own_columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {f: f for f in Prompt.model_fields if f != "extra" and any(row.get(f) is not None for row in rows)}
