"""What another library's config file states: a key that is there, of the kind that is needed, or one clear error."""

from pathlib import Path
from typing import Any

from demur.errors import FileError
from demur.files import read_json


def config(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: no such file, not JSON, or not an object.
    """
    return section(read_json(path), path)


def section(body: Any, path: Path) -> dict[str, Any]:
    """`body` as an object.

    Raises:
        FileError: it is none.
    """
    if not isinstance(body, dict):
        raise FileError(f"{path} holds {type(body).__name__} where an object was expected; it is no SAE's config.")
    return body


def size(body: dict[str, Any], key: str, path: Path) -> int:
    """A whole number above 0.

    Raises:
        FileError: the key is missing, or holds something else.
    """
    value = body.get(key)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if number % 1 != 0 or number < 1:  # neither infinity nor what is no number has the remainder 0
        raise FileError(f"{path}: `{key}` is {value!r}; expected a whole number above 0.")
    return int(number)
