"""How good an SAE is, on held-out text: variance unexplained, sparsity, dead and dense features, what the model loses;
and how many of its features point the same way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from demur.activations.stream import SINK_RATIO, padded, read_rows
from demur.data.corpus import Sequences
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Record
from demur.sae.sae import SAE

ROWS = 8
"""Sequences at a time; the head's logits are long."""
COMPARED = 512
"""Tokens whose two distributions over the vocabulary are compared at a time."""
DENSE = 0.1
"""A feature active on a larger share of the tokens is dense: too common to mean one thing."""
PART = 2048
"""Decoder rows at a time that are compared with all."""


Measure: TypeAlias = "Callable[[LanguageModel, SAE, list[np.ndarray]], Tally]"


class Quality(Record):
    """Figures of one SAE on held-out text."""

    tokens: int
    predicted: int
    """Tokens that the losses and the KL are means over."""
    fvu: float
    """Share of the activations' variance that the reconstruction leaves unexplained."""
    l0: float
    """Active features per token."""
    dead: float
    """Share of the features not active once in these tokens."""
    dense: float
    """Share of the features active on more than a tenth of the tokens."""
    loss_plain: float
    """Mean next-token loss of the model, in nats."""
    loss_spliced: float
    """The same with the reconstruction in place of the activations (the first token's kept)."""
    loss_zeroed: float
    """The same with zeros in their place."""
    loss_recovered: float
    """(zeroed − spliced) / (zeroed − plain)."""
    kl_spliced: float
    """KL(plain ‖ spliced) of the next token, in nats a token."""


@dataclass
class Tally:
    """Sums over tokens, from which the figures come; two of them added are those of both texts."""

    active: Tensor
    """Tokens on which each feature is active, `[d_sae]`."""
    total: Tensor
    """Of the activations, `[d_model]`."""
    tokens: int = 0
    fired: int = 0
    error: float = 0.0
    squares: float = 0.0
    predicted: int = 0
    """Tokens that the losses are means over."""
    losses: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """Plain, spliced, zeroed; and the KL of the splice."""

    @classmethod
    def of(cls, sae: SAE) -> "Tally":
        """An empty one."""
        return cls(torch.zeros(sae.config.d_sae, dtype=torch.long), torch.zeros(sae.config.d_model).double())

    def __add__(self, other: "Tally") -> "Tally":
        mine, theirs = vars(self), vars(other)
        return Tally(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of the tokens on which each feature is active."""
        return self.active / self.tokens

    @property
    def quality(self) -> Quality:
        """The figures."""
        plain, spliced, zeroed, kl = (self.losses / self.predicted).tolist()
        return Quality(
            tokens=self.tokens,
            predicted=self.predicted,
            fvu=self.error / (self.squares - float(self.total.pow(2).sum()) / self.tokens),
            l0=self.fired / self.tokens,
            dead=float((self.active == 0).float().mean()),
            dense=float((self.density > DENSE).float().mean()),
            loss_plain=plain,
            loss_spliced=spliced,
            loss_zeroed=zeroed,
            loss_recovered=(zeroed - spliced) / (zeroed - plain),
            kl_spliced=kl,
        )


def measure(lm: LanguageModel, sae: SAE, text: Sequences, batch: int = ROWS) -> Quality:
    """Quality on every token of the text but the first of each sequence, whose activation is an attention sink. Other
    sinks, which are not trained on either, count for the losses and the KL alone.

    Raises:
        SAEError: the SAE is for another width.
    """
    return tally(lm, sae, {"": text}, batch)[""].quality


@torch.inference_mode()
def tally(
    lm: LanguageModel, sae: SAE, texts: Mapping[str, Sequences], batch: int = ROWS, spliced: float = 1.0
) -> dict[str, Tally]:
    """The sums of each text, by name; `spliced` is the share of it on which losses are taken, which cost several times
    what reading does.

    Raises:
        SAEError: the SAE is for another width.
    """
    found = {name: Tally.of(sae) for name in texts}
    work: list[tuple[str, list[np.ndarray], Measure]] = []
    for name, text in texts.items():
        rows = sorted((text[i] for i in range(len(text))), key=len)
        some = max(1, round(spliced * len(rows)))
        # From the middle of each stretch of lengths: neither the short rows nor the long ones.
        middle = [rows[(2 * i + 1) * len(rows) // (2 * some)] for i in range(some)]
        for of, how in ((rows, _read), (middle, _losses)):
            work += [(name, of[i : i + batch], how) for i in range(0, len(of), batch)]
    with bar("measuring the SAE", len(work)) as progress:
        for name, group, how in work:
            found[name] += how(lm, sae, group)
            progress.step()
    return found


def nearest(sae: SAE) -> Float[Tensor, " d_sae"]:
    """The largest cosine of each decoder row with another: near 1, two features are one. Rows of zeros have 0."""
    rows = F.normalize(sae.W_dec.float(), dim=1)
    found = []
    for start in range(0, len(rows), PART):
        cosines = rows[start : start + PART] @ rows.T
        cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -1
        found.append(cosines.amax(1))
    return torch.cat(found).cpu()


def _read(lm: LanguageModel, sae: SAE, rows: list[np.ndarray]) -> Tally:
    # What the activations say by themselves.
    x = read_rows(lm, [sae.config.site], rows)[:, 0]
    x = x[x.norm(dim=1) <= SINK_RATIO * x.norm(dim=1).median()]
    values, indices = sae.encode_sparse(x)
    return Tally(
        active=torch.bincount(indices[values > 0], minlength=sae.config.d_sae).cpu(),
        total=x.sum(0).double().cpu(),
        tokens=len(x),
        fired=int((values > 0).sum()),
        error=float((x - sae.decode_sparse(values, indices)).pow(2).sum()),
        squares=float(x.pow(2).sum()),
    )


def _losses(lm: LanguageModel, sae: SAE, rows: list[np.ndarray]) -> Tally:
    # What the model makes of the reconstruction, and of nothing, in place of the activations.
    ids, real = (t.to(lm.device) for t in padded(rows))
    targets, before = ids[real], real[:, 1:]

    def logits(how: str) -> tuple[Tensor, ...]:
        def splice(hidden: Tensor) -> Tensor | None:
            if how == "plain":
                return None
            flat = hidden[:, 1:].reshape(-1, hidden.shape[-1]).to(sae.W_enc)
            new = sae.decode_sparse(*sae.encode_sparse(flat)) if how == "spliced" else torch.zeros_like(flat)
            return torch.cat([hidden[:, :1], new.view_as(hidden[:, 1:]).to(hidden)], dim=1)

        with at_blocks({lm.block(sae.config.site): splice}):
            return lm.logits(ids)[:, :-1][before].split(COMPARED)

    def loss(scores: tuple[Tensor, ...]) -> float:
        parts = zip(scores, targets.split(COMPARED), strict=True)
        return sum(float(F.cross_entropy(s.float(), t, reduction="sum")) for s, t in parts)

    zeroed = loss(logits("zeroed"))  # before the others, which are held together
    plain, spliced = logits("plain"), logits("spliced")
    kl = [
        F.kl_div(b.float().log_softmax(1), a.float().log_softmax(1), log_target=True, reduction="sum")
        for a, b in zip(plain, spliced, strict=True)
    ]
    losses = torch.tensor([loss(plain), loss(spliced), zeroed, float(sum(kl))]).double()
    return replace(Tally.of(sae), predicted=len(targets), losses=losses)
