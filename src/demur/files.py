"""Reading and writing files: nothing is lost or half-written, and every failure is one clear sentence."""

import difflib
import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from demur.errors import FileError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or a FileError that says what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist{nearest(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read as text ({error}).") from error


def nearest(path: Path) -> str:
    """A hint for a missing path: the neighbour with the most similar name, if any."""
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path."


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, blank lines passed over.

    Raises:
        FileError: no such file, or a line that is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FileError(f"{path}, line {number} is not JSON ({error.msg}); expected one object a line.") from error
        if not isinstance(row, dict):
            raise FileError(f"{path}, line {number} is {type(row).__name__}; expected one JSON object a line.")
        yield row


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that is written line by line: none where there is no file yet; a last line that a
    kill cut short is dropped, from the file too.

    Raises:
        FileError: a whole line that is not a JSON object.
    """
    if not path.is_file():
        return []
    text = read_text(path)
    if text and not text.endswith("\n"):
        with replacing(path) as tmp:
            tmp.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return list(read_jsonl(path))


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Writes one JSON object a line, columns that are None left out."""
    with replacing(path) as tmp, tmp.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(to_line(row))


def to_line(row: BaseModel | dict[str, Any]) -> str:
    """One line of JSONL."""
    body = row.model_dump(mode="json", exclude_none=True) if isinstance(row, BaseModel) else row
    return json.dumps(body, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileError: no such file, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FileError(f"{path} is not a JSON file ({error}).") from error


def write_json(path: Path, body: BaseModel | dict[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file, indented for reading."""
    plain = body.model_dump(mode="json", exclude_none=True) if isinstance(body, BaseModel) else body
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class replacing:  # noqa: N801 - read as `with replacing(path) as tmp`
    """A temporary file beside `path` that takes its place if the block succeeds, and vanishes if it does not."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        os.close(handle)
        self.tmp = Path(name)
        return self.tmp

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is None:
            # mkstemp makes private files; what we write is meant to be shared like any other file.
            umask = os.umask(0)
            os.umask(umask)
            self.tmp.chmod(0o666 & ~umask)
            self.tmp.replace(self.path)
            return
        self.tmp.unlink(missing_ok=True)
        # safetensors raises its own kind, with the system's words in it.
        if isinstance(error, Exception) and (
            "No space left" in str(error) or getattr(error, "errno", 0) == errno.EDQUOT
        ):
            raise FileError(
                f"no room on the disk for {self.path}; nothing of it was written. Make room and give the same command."
            ) from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place if the block succeeds, and vanishes if it does not.

    Raises:
        FileError: `folder` is there, and is a file or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} is there already and not empty; name a new folder, so that nothing is lost.")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as made:
        inside = Path(made) / folder.name
        inside.mkdir()
        yield inside
        inside.replace(folder)
