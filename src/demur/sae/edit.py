"""The edit, in one function: `x' = x + Σ_j (f'_j − f_j(x)) · W_dec[j]`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from demur.records import Edit
from demur.sae.rules import dense
from demur.sae.sae import SAE


@dataclass(frozen=True)
class Edits:
    """Edits as tensors, one entry per edited feature."""

    features: Tensor
    operations: tuple[str, ...]
    values: Tensor

    @property
    def only_add(self) -> bool:
        """Whether the change is the same whatever the activations are."""
        return set(self.operations) == {"add"}

    @classmethod
    def of(cls, edits: Sequence[Edit], like: Tensor) -> "Edits":
        """Edits in the precision and on the device of `like`."""
        return cls(
            features=torch.tensor([e.feature for e in edits], device=like.device, dtype=torch.long),
            operations=tuple(e.operation for e in edits),
            values=torch.tensor([e.value for e in edits], device=like.device, dtype=like.dtype),
        )

    def amounts(self, scale: Float[Tensor, "tokens 1"] | None = None) -> Float[Tensor, "... edits"]:
        """The values, in the SAE's units; with `scale`, of every token."""
        return self.values if scale is None else self.values * scale

    def apply(
        self, f: Float[Tensor, "tokens edits"], scale: Float[Tensor, "tokens 1"] | None = None
    ) -> Float[Tensor, "tokens edits"]:
        """What the edited features' activations become; amounts are multiplied by `scale`, factors are not."""
        amounts = self.amounts(scale).expand_as(f)
        if set(self.operations) == {"clamp"}:
            return amounts  # as below, at once: most policies do nothing else, at every token
        columns = [
            OPERATIONS[op](f[:, j], self.values[j] if op == "scale" else amounts[:, j])
            for j, op in enumerate(self.operations)
        ]
        return torch.stack(columns, dim=1) if columns else f


OPERATIONS = {
    "clamp": lambda f, value: value,
    "clamp_min": torch.maximum,
    "scale": lambda f, value: f * value,
    "add": lambda f, value: f + value,
    "ablate": lambda f, value: torch.zeros_like(f),
}


def edit(
    x: Float[Tensor, "tokens d_model"],
    sae: SAE,
    edits: Edits,
    keep_error: bool = True,
    scale: Float[Tensor, "tokens 1"] | None = None,
) -> Float[Tensor, "tokens d_model"]:
    """A new tensor with some features' activations changed.

    `f_j(x)` comes from the full encode: a feature outside the Top-k has activation 0, and a clamped feature displaces
    none. With `keep_error`, what the SAE does not reconstruct stays in place; without, the result is the decoded
    activations alone, the plain splice of O'Brien et al. (arXiv 2411.11296). `scale` multiplies what features are
    clamped to or raised by, token by token. Where all are added to, nothing has to be encoded: `f'_j − f_j` is known.
    """
    if edits.only_add and keep_error:
        return (x + edits.amounts(scale).to(sae.W_dec) @ sae.W_dec[edits.features]).to(x)
    values, indices = sae.encode_sparse(x)
    f = dense(values, indices, sae.config.d_sae)[:, edits.features]
    change = (edits.apply(f, scale) - f) @ sae.W_dec[edits.features]  # in the SAE's precision, as the sum is
    return ((x if keep_error else sae.decode_sparse(values, indices)) + change).to(x)
