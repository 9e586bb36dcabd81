"""How each rule learns: which features of a batch are active, and what its sparsity costs (in use: `rules`).

A rule picks entries from pre-activations piece by piece, so that they are never held for a whole batch; `settle` makes
those of the batch final. `gradients` turns the loss's gradient by activations into that by pre-activations, and adds the
rule's own loss. Losses are shares of the batch's variance, like the reconstruction's.
"""

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from demur.sae.ranks import Ranks
from demur.sae.rules import top_k
from demur.sae.settings import SAESettings
from demur.sae.sparse import Active, ByFeature, sums

NEAR = 0.8
"""BatchTopK looks at what lies above so much of the last batch's threshold; if that is too little, further down."""
MEMORY = 0.9
"""How much of BatchTopK's threshold is kept at each step; it wanders as the SAE learns, and varies little by batch."""


class LearningRule(Protocol):
    """What the trainer asks of a rule."""

    learnt: dict[str, Tensor]
    """Parameters beside the SAE's own, with gradients."""
    counters: dict[str, Tensor]
    """What it remembers from step to step."""

    def start(self, pre: Float[Tensor, "tokens d_sae"], b_enc: Float[Tensor, " d_sae"]) -> None:
        """Looks at the first pre-activations (a sample of them)."""
        ...

    def pick(self, pre: Float[Tensor, "tokens d_sae"]) -> Active:
        """The entries of some tokens that may be active, with their pre-activations."""
        ...

    def settle(self, picked: Active, tokens: int, ranks: Ranks) -> Active | None:
        """The batch's entries with their activations; None if too few were picked, and `pick` will now pick more."""
        ...

    def gradients(
        self,
        active: Active,
        entries: ByFeature,
        by_value: Float[Tensor, " n"],
        tokens: int,
        variance: Tensor,
        ranks: Ranks,
    ) -> Float[Tensor, " n"]:
        """The loss's gradient by pre-activations; `entries` are the active ones by feature, `tokens` and `variance` those
        of all processes' batch."""
        ...

    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """That of each feature in use, if the rule has one."""
        ...


class TopK:
    """The k largest of each token: Gao et al., arXiv 2406.04093. No loss of its own."""

    def __init__(self, settings: SAESettings, d_model: int, device: torch.device) -> None:
        self.k = settings.k
        self.learnt: dict[str, Tensor] = {}
        self.counters: dict[str, Tensor] = {}

    def start(self, pre: Float[Tensor, "tokens d_sae"], b_enc: Float[Tensor, " d_sae"]) -> None:
        """Nothing to prepare."""

    def pick(self, pre: Float[Tensor, "tokens d_sae"]) -> Active:
        """See `LearningRule`."""
        values, features = top_k(pre, self.k)
        k = values.shape[1]
        return Active(torch.arange(len(pre) + 1, device=pre.device) * k, features.flatten(), values.flatten())

    def settle(self, picked: Active, tokens: int, ranks: Ranks) -> Active | None:
        """See `LearningRule`."""
        return picked

    def gradients(
        self,
        active: Active,
        entries: ByFeature,
        by_value: Float[Tensor, " n"],
        tokens: int,
        variance: Tensor,
        ranks: Ranks,
    ) -> Float[Tensor, " n"]:
        """See `LearningRule`."""
        return by_value * (active.values > 0)

    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """See `LearningRule`."""
        return None


class BatchTopK(TopK):
    """The `k · tokens` largest of the batch: Bussmann et al., arXiv 2412.06410.

    In use there is no batch: the threshold is the mean over steps of the smallest activation that counted.
    """

    def __init__(self, settings: SAESettings, d_model: int, device: torch.device) -> None:
        super().__init__(settings, d_model, device)
        self.d_sae = settings.d_sae
        self.counters = {
            "threshold": torch.full((), -1.0, device=device),  # none yet
            "floor": torch.zeros((), device=device),
        }

    def start(self, pre: Float[Tensor, "tokens d_sae"], b_enc: Float[Tensor, " d_sae"]) -> None:
        """A first guess at the threshold."""
        self.counters["floor"].fill_(NEAR * quantile(pre, self.k))

    def pick(self, pre: Float[Tensor, "tokens d_sae"]) -> Active:
        """See `LearningRule`."""
        return above(pre, self.counters["floor"].clamp_min(0))

    def settle(self, picked: Active, tokens: int, ranks: Ranks) -> Active | None:
        """See `LearningRule`."""
        everything, wanted = ranks.all(picked.values), self.k * tokens
        floor = self.counters["floor"]
        if len(everything) < wanted and floor > 0:
            # Far down at once: with nothing to go by, all that is positive.
            self.counters["floor"] = torch.where(floor > 0.1, floor / 2, 0.0)
            return None
        active = picked
        if len(everything) > wanted:
            edge = everything.kthvalue(len(everything) - wanted + 1).values
            keep = picked.values > edge
            # Of entries exactly at the edge, the first ones; which process has them does not matter to the law's 1e-5.
            tied = (picked.values == edge).nonzero()[:, 0]
            over = wanted - int((everything > edge).sum())
            keep[tied[: over if ranks.size == 1 else math.ceil(over / ranks.size)]] = True
            active = filtered(picked, keep)
        lows = ranks.all(active.values.min()[None] if len(active.values) else active.values)
        if len(lows) == 0:  # nothing is active anywhere; what that comes to is for the trainer to say
            return active
        least = lows.min()
        self.counters["floor"] = NEAR * least
        before = self.counters["threshold"]
        self.counters["threshold"] = torch.where(before < 0, least, MEMORY * before + (1 - MEMORY) * least)
        return active

    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """See `LearningRule`."""
        return self.counters["threshold"].clamp_min(0).expand(self.d_sae).clone()


class ReLU(TopK):
    """All that is positive, kept sparse by an L1 loss.

    The loss is `sparsity · Σ f` beside the squared error, decoder rows of norm 1 and inputs of mean squared norm
    `d_model`, where 5 is usual (Anthropic, Circuits Updates April 2024).
    """

    def __init__(self, settings: SAESettings, d_model: int, device: torch.device) -> None:
        super().__init__(settings, d_model, device)
        self.sparsity = 5.0 if settings.sparsity is None else settings.sparsity

    def start(self, pre: Float[Tensor, "tokens d_sae"], b_enc: Float[Tensor, " d_sae"]) -> None:
        """A bias with which 4 k features of a token are active, not half of all."""
        b_enc.fill_(-quantile(pre, 4 * self.k))

    def pick(self, pre: Float[Tensor, "tokens d_sae"]) -> Active:
        """See `LearningRule`."""
        return above(pre, 0.0)

    def gradients(
        self,
        active: Active,
        entries: ByFeature,
        by_value: Float[Tensor, " n"],
        tokens: int,
        variance: Tensor,
        ranks: Ranks,
    ) -> Float[Tensor, " n"]:
        """See `LearningRule`."""
        return (by_value + self.sparsity / variance) * (active.values > 0)


class JumpReLU:
    """All above a threshold of its own for each feature: Rajamanoharan et al., arXiv 2407.14435.

    The loss is `sparsity · (L0 / k − 1)²` with L0 the mean number of active features (their appendix on a target L0). It
    reaches the thresholds alone, through pseudo-derivatives from the entries within half a bandwidth of a threshold
    (their equations 11 and 12, a rectangle as kernel). Thresholds are learnt as logarithms.
    """

    def __init__(self, settings: SAESettings, d_model: int, device: torch.device) -> None:
        self.k = settings.k
        self.sparsity = 1.0 if settings.sparsity is None else settings.sparsity
        self.bandwidth = settings.bandwidth
        self.learnt = {"log_threshold": torch.zeros(settings.d_sae, device=device)}
        self.counters: dict[str, Tensor] = {}

    def start(self, pre: Float[Tensor, "tokens d_sae"], b_enc: Float[Tensor, " d_sae"]) -> None:
        """Thresholds above which 2 k features of a token are active."""
        self.learnt["log_threshold"].fill_(math.log(quantile(pre, 2 * self.k)))

    def pick(self, pre: Float[Tensor, "tokens d_sae"]) -> Active:
        """See `LearningRule`."""
        return above(pre, (self.learnt["log_threshold"].exp() - self.bandwidth / 2).clamp_min(0))

    def settle(self, picked: Active, tokens: int, ranks: Ranks) -> Active | None:
        """See `LearningRule`."""
        self.pre, self.edges = picked.values, self.learnt["log_threshold"].exp()[picked.features]
        return picked._replace(values=self.pre * (self.pre > self.edges))

    def gradients(
        self,
        active: Active,
        entries: ByFeature,
        by_value: Float[Tensor, " n"],
        tokens: int,
        variance: Tensor,
        ranks: Ranks,
    ) -> Float[Tensor, " n"]:
        """See `LearningRule`."""
        count = (active.values > 0).sum().float()
        ranks.sum(count)
        by_count = 2 * self.sparsity * (count / tokens / self.k - 1) / self.k / tokens
        near = ((self.pre - self.edges).abs() < self.bandwidth / 2) / -self.bandwidth
        # By the threshold: −(θ/ε) K through the activation, −(1/ε) K through the count; by its logarithm, θ times that.
        by_log = (by_value * self.edges + by_count) * near * self.edges
        self.learnt["log_threshold"].grad = sums(entries, by_log)
        return by_value * (active.values > 0)

    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """See `LearningRule`."""
        return self.learnt["log_threshold"].exp()


LEARNING: dict[str, type[TopK] | type[JumpReLU]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "relu": ReLU,
    "jumprelu": JumpReLU,
}


def above(pre: Float[Tensor, "tokens d_sae"], floor: Tensor | float) -> Active:
    """The entries above a floor (one, or one for each feature)."""
    rows, features = (pre > floor).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(pre))
    return Active(F.pad(counts.cumsum(0), (1, 0)), features, pre[rows, features])


def filtered(active: Active, keep: Tensor) -> Active:
    """Some of the entries."""
    offsets = F.pad(keep.long().cumsum(0), (1, 0))[active.offsets]
    return Active(offsets, active.features[keep], active.values[keep])


def joined_rows(parts: list[Active]) -> Active:
    """The entries of tokens in several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Active(
        F.pad(counts.cumsum(0), (1, 0)),
        torch.cat([part.features for part in parts]),
        torch.cat([part.values for part in parts]),
    )


def quantile(pre: Float[Tensor, "tokens d_sae"], k: int) -> float:
    """The value that `k` pre-activations of a token exceed on average; 1e-3 at least."""
    wanted = min(k * len(pre), pre.numel())
    return max(1e-3, pre.flatten().topk(wanted).values[-1].item())
