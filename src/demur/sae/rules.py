"""Activation rules: from pre-activations to the few that count."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

RuleName = Literal["topk", "batchtopk", "jumprelu", "relu"]
COUNTED = ("topk", "batchtopk")
"""Rules with a `k`."""
THRESHOLDED = ("batchtopk", "jumprelu")
"""Rules with a threshold for each feature, once trained."""

Sparse: TypeAlias = tuple[Tensor, Tensor]
"""Values and indices of the active features, each `[tokens, width]`; a value of 0 is an inactive place, and no index
comes twice in a row. The width is `k`, or that of the token with the most active features."""

Rule: TypeAlias = Callable[[Float[Tensor, "tokens d_sae"], int | None, Tensor | None], Sparse]
"""From pre-activations, `k` and thresholds `[d_sae]`; each rule takes what it has."""


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


def above(pre: Float[Tensor, "tokens d_sae"], threshold: Float[Tensor, " d_sae"] | float) -> Sparse:
    """Every pre-activation above its feature's threshold, and above 0.

    Zero for all is ReLU; a threshold each is JumpReLU (Rajamanoharan et al., arXiv 2407.14435, equation 2); BatchTopK
    comes to this in use, with the one threshold learnt in training (Bussmann et al., arXiv 2412.06410, section 3).
    """
    f = torch.where(pre > threshold, pre, 0).relu()
    width = int((f > 0).sum(dim=1).max()) if len(f) else 0
    # Of as many as the widest row has: what a narrower row has over are zeros, each of another feature.
    values, indices = f.topk(max(1, width), dim=1)
    return values, indices


def _top_k(pre: Tensor, k: int | None, threshold: Tensor | None) -> Sparse:
    assert k is not None
    return top_k(pre, k)


def _thresholded(pre: Tensor, k: int | None, threshold: Tensor | None) -> Sparse:
    assert threshold is not None
    return above(pre, threshold)


RULES: dict[str, Rule] = {
    "topk": _top_k,
    "batchtopk": _thresholded,
    "jumprelu": _thresholded,
    "relu": lambda pre, k, threshold: above(pre, 0.0),
}


def dense(values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int) -> Tensor:
    """The same activations as one `[tokens, d_sae]` tensor."""
    return torch.zeros(len(values), d_sae, dtype=values.dtype, device=values.device).scatter_(1, indices, values)
