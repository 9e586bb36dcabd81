"""Contrast: what is more active in refusals than in compliant replies may write refusal; effect decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from demur.activations.harvest import read
from demur.models.chat import tokens_and_roles
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Message
from demur.sae.sae import SAE

DENSE = 0.5
"""A feature active on more than this share of ordinary reply tokens carries style or template, not refusal."""


@dataclass(frozen=True)
class ReplyStatistics:
    """Each feature on the tokens of some replies; the last prompt token counts, since it writes the first one."""

    mean: Float[Tensor, " d_sae"]
    variance: Float[Tensor, " d_sae"]
    share: Float[Tensor, " d_sae"]
    """Share of the tokens on which the feature is active."""
    twice: Float[Tensor, " d_sae"]
    """Share of the replies in which it is active on at least two tokens."""
    level: Float[Tensor, " d_sae"]
    """Mean, over the replies in which it is active, of its maximum."""
    stream: Float[Tensor, " d_model"]
    """Mean of the residual stream itself."""


def read_replies(
    lm: LanguageModel, sae: SAE, conversations: Sequence[Sequence[Message]], replies: Sequence[list[int]]
) -> ReplyStatistics:
    """Statistics of every feature over teacher-forced replies (token ids)."""
    n = torch.zeros(())
    sums = {name: torch.zeros(sae.config.d_sae) for name in ("x", "xx", "on", "twice", "peak", "fired")}
    stream = torch.zeros(sae.config.d_model)
    with bar("reading replies", len(replies)) as progress:
        for conversation, reply in zip(conversations, replies, strict=True):
            ids = tokens_and_roles(lm, conversation)[0]
            whole = torch.tensor([ids + reply], device=lm.device)
            hidden = read(lm, [sae.config.site], whole)[sae.config.site][0, len(ids) - 1 : -1]
            f = sae.encode(hidden).float().cpu()  # sums of half precision would round
            on = (f > 0).sum(0)
            n += len(f)
            stream += hidden.float().sum(0).cpu()
            sums["x"] += f.sum(0)
            sums["xx"] += f.pow(2).sum(0)
            sums["on"] += on
            sums["twice"] += on >= 2
            sums["peak"] += f.amax(0)
            sums["fired"] += on > 0
            progress.step()
    mean = sums["x"] / n
    return ReplyStatistics(
        mean=mean,
        variance=sums["xx"] / n - mean.pow(2),
        share=sums["on"] / n,
        twice=sums["twice"] / len(replies),
        level=sums["peak"] / sums["fired"].clamp_min(1),
        stream=stream / n,
    )


def separation(refusing: ReplyStatistics, complying: ReplyStatistics) -> Float[Tensor, " d_sae"]:
    """Difference of the means in pooled standard deviations (Cohen's d); 0 for features that are dense anyway."""
    spread = ((refusing.variance + complying.variance) / 2).sqrt()
    d = (refusing.mean - complying.mean) / (spread + 0.05 * spread[spread > 0].mean())
    return torch.where(complying.share > DENSE, torch.zeros(()), d)
