"""Checkpoints: everything that a training depends on, in one file for each of its processes.

The first process's file holds what all share, and names the step; those of the others are written before it, under the
step's name, so that a kill at any moment leaves one step of which everything is there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demur.activations.stream import ActivationStream
from demur.errors import FileError
from demur.files import replacing
from demur.sae.ranks import ALONE, Ranks
from demur.sae.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(folder: Path, trainers: Sequence[Trainer], stream: ActivationStream, ranks: Ranks = ALONE) -> None:
    """Writes trainers and stream; the checkpoint before is gone when this one is complete.

    Raises:
        FileError: the disk is full.
        TrainingError: the training diverged; the checkpoint before stays.
    """
    for trainer in trainers:
        trainer.check()
    state = {f"stream.{name}": value for name, value in stream.state().items()}
    step = trainers[0].step_number
    if not ranks.first:
        _write(_of_rank(folder, step, ranks.rank), state)
    ranks.meet()
    if ranks.first:
        for i, trainer in enumerate(trainers):
            state |= {f"{i}.{name}": value for name, value in trainer.state().items()}
        _write(folder / CHECKPOINT, state | {"ranks": torch.tensor(ranks.size)})
    ranks.meet()
    if not ranks.first:
        for path in folder.glob(f"checkpoint-*-{ranks.rank}.safetensors"):
            if path != _of_rank(folder, step, ranks.rank):
                path.unlink()


def load_checkpoint(folder: Path, trainers: Sequence[Trainer], stream: ActivationStream, ranks: Ranks = ALONE) -> None:
    """Takes up the folder's checkpoint, if it has one.

    Raises:
        FileError: it cannot be read, or is of another number of processes.
        SAEError: it is of another SAE.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return
    state = _read(path)
    if (size := int(state.pop("ranks", torch.tensor(1)))) != ranks.size:
        raise FileError(f"{path} is of a training in {size} processes, not {ranks.size}; start as many as before.")
    for i, trainer in enumerate(trainers):
        trainer.restore(_part(state, f"{i}."))
    if not ranks.first:
        state = _read(_of_rank(folder, trainers[0].step_number, ranks.rank))
    stream.restore(_part(state, "stream."))


def _of_rank(folder: Path, step: int, rank: int) -> Path:
    return folder / f"checkpoint-{step}-{rank}.safetensors"


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _write(path: Path, state: dict[str, Tensor]) -> None:
    with replacing(path) as tmp:
        save_file({name: value.contiguous() for name, value in state.items()}, tmp)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise FileError(f"{path} cannot be read ({error}); delete it to train from the beginning.") from error
