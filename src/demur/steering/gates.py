"""Gates: running rules that read the unedited stream and decide, row by row, whether a policy acts."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.records import Gate
from demur.sae.sae import SAE


class GateState:
    """One gate's reading of a batch: pooled activations per row, updated as tokens come, in one pass or in chunks."""

    def __init__(self, gate: Gate, sae: SAE, rows: int, like: Tensor) -> None:
        self.gate, self.sae = gate, sae
        self.features = torch.tensor(gate.features, device=like.device)
        self.weights = torch.tensor(gate.weights, device=like.device, dtype=like.dtype)
        # Activations are never negative, so 0 is the start of a maximum as of a sum.
        self.pooled = torch.zeros(rows, len(gate.features), device=like.device, dtype=like.dtype)
        self.seen = torch.zeros(rows, device=like.device, dtype=like.dtype)

    def update(self, x: Float[Tensor, "tokens d_model"], row: Int[Tensor, " tokens"]) -> None:
        """Takes in tokens, in order of position within each row."""
        f = self.sae.read(x, self.features)
        if self.gate.pooling == "max":
            self.pooled.scatter_reduce_(0, row[:, None].expand_as(f), f, "amax")
        elif self.gate.pooling == "mean":
            self.pooled.index_add_(0, row, f)
        else:
            last = torch.cat([row[1:] != row[:-1], torch.ones_like(row[:1], dtype=torch.bool)])
            self.pooled[row[last]] = f[last]
        self.seen.index_add_(0, row, torch.ones_like(f[:, 0]))

    def activations(self) -> Float[Tensor, "rows features"]:
        """The pooled activations so far."""
        return self.pooled / self.seen.clamp_min(1)[:, None] if self.gate.pooling == "mean" else self.pooled

    def scores(self) -> Float[Tensor, " rows"]:
        """`bias + Σ weight · pooled activation`."""
        # Row by row sums, not a matrix product, whose rounding depends on how many rows are read together.
        return (self.activations() * self.weights).sum(1) + self.gate.bias

    def open(self) -> Bool[Tensor, " rows"]:
        """Which rows reach the threshold."""
        return self.scores() >= self.gate.threshold
