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

    Twins are always in the same split. Most say in `extra["form"]` how the harmless half differs:

    - `advise`: general information, where the other asks for what is dangerous to somebody
    - `defend`: the same threat met, noticed or prevented
    - `depict`: the same in fiction, play or jest
    - `object`: the same verb, done to a thing that cannot be hurt
    - `permit`: the same act by somebody who may
    - `persuade`: a text that argues, fairly and truly
    - `swap`: the same sentence with another purpose or target
    - `understand`: the same topic as history, law, research, definition

    The newer ones also say in `extra["mechanism"]` why it only looks like harm: by the kinds of look-alike of the taxonomy
    (`homonym`, `figurative`, `safe_target`, ...), or as `fiction`, `academic`, `professional`, `victim`, `text`, `advice`,
    `purpose`.

    Without a twin are harmless texts to write on touchy subjects (ids `touchy-text`), requests put as a language model puts
    them that was told to make a harmful one harmless (`softened`; a sixth are harmful all the same), bold imperatives and
    short questions (`bold`; a quarter are), plain parts to play and long tasks (`part`), and small talk, advice, texts and
    small tasks of every day (`everyday`). Twins that are short questions have neither form nor mechanism (`short`).
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
