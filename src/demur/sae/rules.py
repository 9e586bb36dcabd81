"""Activation rules: from pre-activations to the few that count."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Sparse: TypeAlias = tuple[Tensor, Tensor]
"""Values and indices of the active features, each `[tokens, k]`; a value of 0 is an inactive place."""

Rule: TypeAlias = Callable[[Float[Tensor, "tokens d_sae"], int], Sparse]


def top_k(pre: Float[Tensor, "tokens d_sae"], k: int) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest pre-activations of each token, negative ones set to 0 (Gao et al., arXiv 2406.04093, section 2.3).

    Ties go to the lowest index: `torch.topk` leaves them open, so the rows with a tie at the border are sorted again,
    stably.
    """
    if k >= pre.shape[1]:
        values, indices = pre.sort(dim=1, descending=True, stable=True)
        return values.relu(), indices
    values, indices = pre.topk(k + 1, dim=1)
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
    values, indices = values[:, :k], indices[:, :k]
    if tied.any():
        again, order = pre[tied].sort(dim=1, descending=True, stable=True)
        values, indices = values.clone(), indices.clone()
        values[tied], indices[tied] = again[:, :k], order[:, :k]
    return values.relu(), indices


RULES: dict[str, Rule] = {"topk": top_k}


def dense(values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int) -> Tensor:
    """The same activations as one `[tokens, d_sae]` tensor."""
    return torch.zeros(len(values), d_sae, dtype=values.dtype, device=values.device).scatter_(1, indices, values)
