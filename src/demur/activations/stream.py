"""A stream of shuffled activations, made as they are consumed, which can be put down and taken up again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.activations.harvest import read
from demur.activations.shards import shards_of
from demur.data.corpus import Sequences, batches
from demur.errors import TrainingError
from demur.models.load import LanguageModel

TOKENS_PER_PASS = 2048
SINK_RATIO = 10.0
"""Tokens whose norm is this many times the median are attention sinks, whose activations say nothing of the text."""


class ActivationStream:
    """Activations at some sites, `[tokens, sites, d_model]`, through a bounded shuffle buffer on the model's device.

    The first token of each sequence (the attention sink) and padding are left out. The buffer is filled to `capacity`,
    shuffled, and half of it handed out before it is filled again. What it does next depends only on `groups_done`,
    `refills`, `kept` and `norm_limits`, which is what a checkpoint keeps. Of several processes, each reads its share of
    the text (`share`: which of how many). With a folder `cache`, what was read before is taken from there, and what was
    not is left there.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[str],
        text: Sequences,
        capacity: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        cache: Path | None = None,
    ) -> None:
        self.lm, self.sites, self.text, self.capacity, self.seed = lm, tuple(sites), text, capacity, seed
        groups = batches(text.lengths(), TOKENS_PER_PASS, seed)
        self.groups = list(enumerate(groups))[share[0] :: share[1]]
        self.shards = shards_of(cache, lm, self.sites, text, groups) if cache else None
        self.groups_done = 0
        self.refills = 0
        self.kept: Tensor = torch.empty(0, len(self.sites), lm.d_model, device=lm.device)
        self.norm_limits: Tensor = torch.full((len(self.sites),), float("inf"), device=lm.device)

    @property
    def spent(self) -> bool:
        """Whether all text has been read."""
        return self.groups_done == len(self.groups)

    def refill(self) -> bool:
        """Fills and shuffles the buffer; False when text and buffer are used up.

        Raises:
            TrainingError: activations that are not finite.
            FileError: a shard that cannot be read or written.
        """
        parts, held = [self.kept], len(self.kept)
        while held < self.capacity and not self.spent:
            part = self._read(*self.groups[self.groups_done])
            self.groups_done += 1
            parts.append(part)
            held += len(part)
        if held == 0:
            return False
        self.kept = everything = torch.cat(parts)
        parts.clear()  # they would be a third copy of the buffer
        if torch.isinf(self.norm_limits).all():
            self.norm_limits = SINK_RATIO * everything.norm(dim=2).median(dim=0).values
            everything = everything[self._ordinary(everything)]
        self.refills += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.refills)
        self.kept = everything[torch.randperm(len(everything), generator=generator).to(everything.device)]
        return True

    def batches(self, size: int) -> Iterator[Float[Tensor, "batch sites d_model"]]:
        """Batches of at most the capacity, until half of the buffer is left (or all is gone, when there is no more text)."""
        # Of large batches a full buffer still gives one.
        floor = 0 if self.spent else min(self.capacity // 2, self.capacity - size)
        while len(self.kept) - size >= floor or (self.spent and len(self.kept) > 0):
            batch, self.kept = self.kept[:size], self.kept[size:]
            yield batch

    def through(self, size: int) -> Iterator[Float[Tensor, "batch sites d_model"]]:
        """All batches from here to the end of the text, the buffer refilled between them."""
        yield from self.batches(size)
        while not self.spent and self.refill():
            yield from self.batches(size)

    def state(self) -> dict[str, Tensor]:
        """What it does next depends on this."""
        if self.shards is not None:
            self.shards.flush()  # what has been read will not be read again
        return {
            "groups_done": torch.tensor(self.groups_done),
            "refills": torch.tensor(self.refills),
            "norm_limits": self.norm_limits,
            "kept": self.kept.contiguous(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up a state that `state` gave."""
        self.groups_done, self.refills = int(state["groups_done"]), int(state["refills"])
        self.norm_limits, self.kept = (state[name].to(self.lm.device) for name in ("norm_limits", "kept"))

    def _ordinary(self, activations: Tensor) -> Tensor:
        return (activations.norm(dim=2) <= self.norm_limits).all(dim=1)

    def _read(self, number: int, group: list[int]) -> Tensor:
        kept = self.shards.get(number) if self.shards is not None else None
        found = read_rows(self.lm, self.sites, [self.text[i] for i in group]) if kept is None else kept
        found = found.to(self.lm.device)
        norms = found.norm(dim=2)
        if not torch.isfinite(norms).all():
            wrong = ~torch.isfinite(norms)
            site = self.sites[int(wrong.any(0).nonzero()[0])]
            raise TrainingError(
                f"{int(wrong.any(1).sum())} of {len(found)} activations at {site} are not finite in {self.lm.name}; "
                "load the model with --dtype float32 or bfloat16, or read at another --site."
            )
        if self.shards is not None and kept is None:
            self.shards.add(number, found)
        return found[(norms <= self.norm_limits).all(dim=1)]


def read_rows(lm: LanguageModel, sites: Sequence[str], rows: list[np.ndarray]) -> Float[Tensor, "tokens sites d_model"]:
    """Activations of every token but the first of each row, in order, in float32 (float64 stays)."""
    ids, real = padded(rows)
    hidden = read(lm, list(sites), ids.to(lm.device))
    found = torch.stack([hidden[site][real.to(hidden[site].device)].to(lm.device) for site in sites], dim=1)
    return found.to(torch.promote_types(found.dtype, torch.float32))


def padded(rows: Sequence[np.ndarray]) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Token ids, rows padded on the right; and where they are tokens of a row, but its first, an attention sink."""
    width = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
        real[i, 1 : len(row)] = True
    return ids, real
