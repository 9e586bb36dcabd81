"""A policy's own vectors, in a safetensors file beside it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from demur.errors import FileError


@dataclass(frozen=True, eq=False)
class Vectors:
    """Named arrays in float32: directions `[d_model]` and maps `[d_model, d_model]`; equal where the bytes are."""

    arrays: dict[str, Any]
    data: bytes
    """As a safetensors file."""

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> Self:
        """From numpy arrays."""
        from safetensors.numpy import save

        arrays = {name: arrays[name].astype("float32") for name in sorted(arrays)}
        return cls(arrays, save(arrays))

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a safetensors file.

        Raises:
            FileError: no such file, or not of that kind.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not path.is_file():
            raise FileError(f"{path} does not exist; vectors are kept beside the file that names them, under its name.")
        try:
            data = path.read_bytes()
            return cls(load(data), data)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise FileError(f"{path} is not a safetensors file ({error}); make it again.") from error

    @classmethod
    def beside(cls, path: Path, expected: str, again: str) -> Self:
        """The vectors beside a file that was written with those of hash `expected`.

        Raises:
            FileError: no such file, not of that kind, or another one; `again` says how to make both anew.
        """
        held = cls.load(path.with_suffix(".safetensors"))
        if held.hash != expected:
            raise FileError(
                f"{path.with_suffix('.safetensors')} ({held.hash}) is not the file that {path} was written with "
                f"({expected}); {again}."
            )
        return held

    @property
    def hash(self) -> str:
        """Twelve hex digits of the bytes."""
        return hashlib.sha256(self.data).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vectors) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]
