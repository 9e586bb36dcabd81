"""The processes that train one SAE together: each has its own share of every batch, and all take the same step.

`torchrun --nproc-per-node N -m -- demur train …` starts them (gloo on CPUs, NCCL on GPUs); without `--`, torchrun takes
`--run` for an option of its own. Alone, every method does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from demur.errors import SettingsError, TrainingError, first_line

PATIENCE = timedelta(days=7)
"""How long the others wait while the first makes the text; a process that ends is noticed at once all the same."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    """Where what they tell each other lies."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks for all."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> None:
        """Adds each tensor up over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                with _explained():
                    dist.all_reduce(tensor)

    def all(self, values: Tensor) -> Tensor:
        """The values of all processes, one after the other; each may have another number of them."""
        if self.size == 1:
            return values
        with _explained():
            counts = [torch.zeros((), dtype=torch.long, device=values.device) for _ in range(self.size)]
            dist.all_gather(counts, torch.tensor(len(values), device=values.device))
            widest = int(max(counts))
            parts = [values.new_empty(widest, *values.shape[1:]) for _ in range(self.size)]
            padded = values.new_zeros(widest, *values.shape[1:])
            padded[: len(values)] = values
            dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])

    def agree(self, going: bool, due: bool) -> tuple[bool, bool]:
        """Whether any process says each."""
        if self.size == 1:
            return going, due
        said = torch.tensor([float(going), float(due)], device=self.device)
        self.sum(said)
        return bool(said[0] > 0), bool(said[1] > 0)

    def told(self, text: str) -> str:
        """What the first process says."""
        if self.size == 1:
            return text
        said = [text]
        with _explained():
            dist.broadcast_object_list(said)
        return said[0]

    def meet(self) -> None:
        """Waits until all are here."""
        if self.size > 1:
            with _explained():
                dist.barrier()


ALONE = Ranks()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """This process among those that torchrun started, to train on a device (`auto`, `cpu`, `cuda`); alone, if it did not.

    Raises:
        SettingsError: more processes than GPUs.
        TrainingError: another process ended while this one waited for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise SettingsError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with {there} GPUs; start as many as "
                "there are with --nproc-per-node, or give --device cpu."
            )
        torch.cuda.set_device(place)
    with _explained():
        dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), "cuda" if gpu else "cpu")
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this training ended ({first_line(error)}); "
            "the same command with the same --run goes on from the last checkpoint."
        ) from error
