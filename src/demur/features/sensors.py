"""Sensors: the few features from which harm can be read, and the logistic model that reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor

RARE = 0.002
"""A feature active on a smaller share of the prompts cannot be learnt about."""
KEPT = 0.8
"""Share of the features that survives a round of elimination."""
RIDGE = 0.003
"""Inverse strength of the L2 penalty, on features scaled to unit variance."""


@dataclass(frozen=True)
class Reading:
    """A sparse logistic model of harm: `bias + Σ weights · pooled activations`."""

    features: list[int]
    """Heaviest first."""
    weights: list[float]
    """Log-odds per unit of activation."""
    bias: float
    areas: list[float]
    """AUC of each feature alone, on the prompts it was fitted to."""

    def scores(self, pooled: Float[Tensor, "prompts width"]) -> Float[Tensor, " prompts"]:
        """Log-odds of harm."""
        return pooled[:, self.features] @ torch.tensor(self.weights, dtype=pooled.dtype) + self.bias


def fit(pooled: Float[Tensor, "prompts d_sae"], harmful: Sequence[bool], groups: Sequence[str], count: int) -> Reading:
    """At most `count` features, found by fitting all, dropping the lightest, and fitting again.

    Recursive elimination from a ridge model (Guyon et al., 2002): on our validation prompts it separated harmful
    requests from look-alikes better than the L1 path did, at equal numbers of features. `groups` names where each
    prompt comes from and of which kind it is: rows are weighted so that a group counts by the root of its size, and
    both labels alike - otherwise the largest source's style is what is learnt.
    """
    x, y = pooled.numpy(), np.asarray(harmful)
    weight = weights_of(y, groups)
    scale = x.std(0) + 1e-6
    kept = np.flatnonzero((x != 0).mean(0) > RARE)
    # The solver's products are small: on two busy cores a second thread made them twenty times slower.
    with threadpool_limits(1):
        while True:
            model = LogisticRegression(C=RIDGE, max_iter=1000).fit(x[:, kept] / scale[kept], y, weight)
            heaviest = np.argsort(-np.abs(model.coef_[0]), kind="stable")
            if len(kept) <= count:
                break
            kept = kept[heaviest[: max(count, int(KEPT * len(kept)))]]
    return Reading(
        features=kept[heaviest].tolist(),
        weights=(model.coef_[0] / scale[kept])[heaviest].tolist(),
        bias=float(model.intercept_[0]),
        areas=[float(roc_auc_score(y, x[:, f])) for f in kept[heaviest]],
    )


def weights_of(y: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """A weight for each row, mean 1: a group counts by the root of its size, and both labels alike."""
    names = np.array([f"{g} {label}" for g, label in zip(groups, y, strict=True)])
    sizes = {name: (names == name).sum() for name in set(names)}
    weight = np.array([1 / np.sqrt(sizes[name]) for name in names])
    for label in (True, False):
        weight[y == label] /= weight[y == label].sum()
    return weight * len(y) / 2
