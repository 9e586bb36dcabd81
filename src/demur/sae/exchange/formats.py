"""Which format an SAE on disk has, and opening any of them as ours."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from demur.errors import FileError, SettingsError
from demur.files import filling, nearest
from demur.sae import sae as own
from demur.sae.exchange import dictionary_learning, gemma_scope, saelens, sparsify
from demur.sae.exchange.foreign import Foreign
from demur.sae.sae import SAE

DEMUR = "demur"
FILES = {
    own.CONFIG: DEMUR,
    saelens.WEIGHTS: saelens.NAME,
    sparsify.WEIGHTS: sparsify.NAME,
    dictionary_learning.WEIGHTS: dictionary_learning.NAME,
    gemma_scope.NPZ: gemma_scope.NAME,
    gemma_scope.SAFETENSORS: gemma_scope.NAME,
}
"""The file by which a folder is known; ours has sparsify's too, so the order counts."""
SUFFIXES = {".npz": gemma_scope.NAME, ".pt": dictionary_learning.NAME}
"""Files that are SAEs whatever their name."""
READERS: dict[str, Callable[[Path], Foreign]] = {
    saelens.NAME: saelens.read,
    sparsify.NAME: sparsify.read,
    dictionary_learning.NAME: dictionary_learning.read,
    gemma_scope.NAME: gemma_scope.read,
}
OF_FOLDERS = (DEMUR, saelens.NAME, sparsify.NAME)
"""Formats of several files, which are named by their folder."""
WRITERS: dict[str, Callable[[SAE, Path], None]] = {
    DEMUR: lambda sae, folder: sae.save(folder),
    "saelens": saelens.write,
    "sparsify": sparsify.write,
}


def format_of(path: Path) -> tuple[str, Path] | None:
    """The format of an SAE, and the folder or file that its reader takes; None if it is none that demur knows."""
    if path.is_file():
        if path.suffix in SUFFIXES:
            return SUFFIXES[path.suffix], path
        named = FILES.get(path.name)
        return (format_of(path.parent) if named in OF_FOLDERS else (named, path)) if named else None
    for file, name in FILES.items():
        if (path / file).is_file():
            return name, path if name in OF_FOLDERS else path / file
    return None


def read_foreign(path: Path) -> Foreign:
    """An SAE of another library, as it lies on disk.

    Raises:
        FileError, SAEError: it cannot be read, or is of a kind that demur has no rule for.
    """
    name, where = format_of(path) or _unknown(path)
    return READERS[name](where)


def open_sae(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> SAE:
    """An SAE in any format that demur knows, as ours.

    Raises:
        FileError: there is none, or its files are truncated, damaged or hostile.
        SAEError: it is of a kind that demur has no rule for, its shapes are not those it states, or it does not say
            where in the model it belongs.
    """
    path = Path(path)
    name, where = format_of(path) or _unknown(path)
    if name == DEMUR:
        return SAE.load(where, dtype, device)
    return READERS[name](where).sae().to(torch.zeros((), dtype=dtype, device=device))


def check_writer(to: str) -> None:
    """Raises SettingsError unless there is such a format to write."""
    if to not in WRITERS:
        raise SettingsError(f"no format {to!r} to write; known are {', '.join(WRITERS)}.")


def write(sae: SAE, to: str, folder: Path) -> None:
    """Writes an SAE in a format, into a new folder that is there whole or not at all.

    Raises:
        SettingsError: no such format.
        FileError: the folder is there and not empty.
        SAEError: the format has no rule like the SAE's.
    """
    check_writer(to)
    with filling(folder) as tmp:
        WRITERS[to](sae, tmp)


def _unknown(path: Path) -> NoReturn:
    if not path.exists():
        raise FileError(f"no SAE at {path}{nearest(path)}")
    raise FileError(
        f"no SAE at {path}: expected one of {', '.join(FILES)} in it (demur, SAELens, sparsify, dictionary_learning, "
        "Gemma Scope); missing, or a copy that was cut short."
    )
