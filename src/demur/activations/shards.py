"""Activations kept on disk, so that another training on the same text need not run the model again.

A shard is two files: `000120.safetensors` with the activations of some groups of sequences, `[tokens, sites, d_model]`,
and `000120.json`, written after it, with their numbers, their tokens and the checksum. What has no `.json` does not
count: a process that is killed leaves nothing half-written, and what it had not written is read from the model again.
`index.json` says of which model, sites and text they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from demur.data.corpus import Sequences
from demur.errors import FileError, SettingsError
from demur.files import read_json, replacing, write_json
from demur.models.load import LanguageModel
from demur.runs import bytes_hash, file_hash

INDEX = "index.json"
SHARD_BYTES = 2**28
"""A shard is written when there is so much for it."""
OPEN = 64
"""Shards that are mapped into memory at once."""


class _Place(NamedTuple):
    shard: str
    start: int
    stop: int


class Shards:
    """The shards of one folder; `get` maps them into memory, `add` keeps what is not there yet.

    Raises:
        SettingsError: the folder holds activations of something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        index = folder / INDEX
        if index.is_file():
            before = read_json(index)
            changed = [key for key in about if before.get(key) != about[key]]
            if changed:
                raise SettingsError(
                    f"{folder} holds activations of another {' and '.join(changed)}; give another folder with --cache."
                )
        else:
            write_json(index, about)
        self.places: dict[int, _Place] = {}
        for path in sorted(folder.glob("[0-9]*.json")):
            self._note(path.stem, read_json(path))
        self.open: dict[str, Any] = {}
        self.verified: set[str] = set()
        self.pending: list[tuple[int, Tensor]] = []

    def get(self, group: int) -> Float[Tensor, "tokens sites d_model"] | None:
        """The activations of a group of sequences, if they are kept.

        Raises:
            FileError: a shard that is truncated or was changed.
        """
        place = self.places.get(group)
        if place is None:
            return None
        if place.shard not in self.open:
            # Those of several processes are read in turn.
            while len(self.open) >= OPEN:
                self.open.pop(next(iter(self.open)))
            self.open[place.shard] = self._opened(place.shard)
        return self.open[place.shard][place.start : place.stop]

    def add(self, group: int, activations: Float[Tensor, "tokens sites d_model"]) -> None:
        """Keeps a group's activations; they are written when there are enough of them, or by `flush`."""
        self.pending.append((group, activations.cpu()))
        if sum(part.numel() * part.element_size() for _, part in self.pending) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet.

        Raises:
            FileError: the disk is full.
        """
        if not self.pending:
            return
        name = f"{self.pending[0][0]:06d}"
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as tmp:
            save_file({"activations": torch.cat([part for _, part in self.pending])}, tmp)
        about = {
            "groups": [group for group, _ in self.pending],
            "tokens": [len(part) for _, part in self.pending],
            "hash": file_hash(path),
        }
        write_json(self.folder / f"{name}.json", about)
        self._note(name, about)
        self.pending = []

    def _note(self, name: str, about: dict[str, Any]) -> None:
        ends = np.cumsum(about["tokens"]).tolist()
        for group, start, stop in zip(about["groups"], [0, *ends], ends, strict=False):
            self.places[group] = _Place(name, start, stop)

    def _opened(self, name: str) -> Any:
        path = self.folder / f"{name}.safetensors"
        mend = f"delete {name}.json and {name}.safetensors in {self.folder}, and they will be made again."
        try:
            if name not in self.verified and file_hash(path) != read_json(path.with_suffix(".json"))["hash"]:
                raise FileError(f"{path} is not as it was written (truncated or changed); {mend}")
            self.verified.add(name)
            return safe_open(path, framework="pt").get_slice("activations")
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} cannot be read ({error}); {mend}") from error


def shards_of(
    folder: Path, lm: LanguageModel, sites: tuple[str, ...], text: Sequences, groups: Sequence[Sequence[int]]
) -> Shards:
    """The folder's shards for this model in its precision, these sites, and this text in these groups."""
    about = {
        "model": lm.hash,
        "precision": str(lm.dtype).removeprefix("torch."),
        "sites": list(sites),
        "text": bytes_hash(text.tokens.tobytes() + text.offsets.tobytes()),
        "order": bytes_hash(json.dumps(groups).encode()),
    }
    return Shards(folder, about)
