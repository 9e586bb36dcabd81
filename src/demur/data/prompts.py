"""Prompt sets: the shipped ones by split, and files."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from demur.config import locate
from demur.data.tables import load_table
from demur.records import PromptSet

Split = Literal["train", "validation", "test"]


def shipped_prompts(split: Split) -> PromptSet:
    """The prompts that we wrote: 28 kinds of harm with look-alike twins, offensive but harmless ones, plain ones.

    Twins are always in the same split.
    """
    with as_file(files("demur.shipped") / "prompts" / f"{split}.jsonl") as path:
        return PromptSet.load(path).model_copy(update={"name": f"demur-{split}"})


def load_prompts(paths: list[Path] | tuple[Path, ...], default: Split) -> PromptSet:
    """The rows of several files (JSONL, CSV, Parquet) as one set; the shipped set of the given split if none is named.

    Raises:
        FileError, PromptError: a file that cannot be used.
    """
    if not paths:
        return shipped_prompts(default)
    sets = [load_table(locate(p)) for p in paths]
    return PromptSet(name="+".join(s.name for s in sets), rows=tuple(row for s in sets for row in s.rows))
