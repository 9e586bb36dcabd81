"""Signals: what may be said of every feature, before any is tried, that speaks for its writing refusals.

Each is a small function that gives a score for each feature; `candidates` merges them. Descent and the rehearsal
(`optimise`) and the contrast of replies (`contrast`) are three more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from demur.data.wrappers import shipped_wrappers
from demur.errors import PromptError
from demur.features.branches import Branches, Values, odds
from demur.features.effect import Bench, Conversation
from demur.models.chat import tokens_and_roles
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Prompt, evenly
from demur.steering.score import chosen

REPLY = 128
"""Tokens for which there is to be room behind a prompt that is made from others."""
FALSE_DISCOVERIES = 0.05
"""Share of the features called lower under a wrapper that may be called so by chance."""
FEWEST = 6
"""Pairs that differ, below which the signed-rank test says nothing at any level used here."""
NEUTRAL = "In my experience,"
"""Text after which output scores are taken; any that leads nowhere will do."""
AMPLIFIED = 10
"""Times the strongest activation by which a feature is raised for its output score (Arad et al., section 3.2)."""
TOKENS = 20
"""Logit-lens tokens that stand for a feature in its output score."""


@dataclass(frozen=True)
class Paired:
    """A one-sided signed-rank test of every feature on pairs of prompts."""

    effect: Float[Tensor, " d_sae"]
    """Matched-pairs rank-biserial correlation: 1 where the feature is higher in the first of every pair."""
    q: Float[Tensor, " d_sae"]
    """p adjusted for the rate of false discoveries; 1 where too few pairs differ."""


def paired(first: Float[Tensor, "pairs d_sae"], second: Float[Tensor, "pairs d_sae"]) -> Paired:
    """Which features are higher in the first of each pair.

    Wilcoxon's signed-rank test (1945), pairs without a difference left out; Benjamini and Hochberg (1995) over the
    features; effect sizes by Kerby (2014).
    """
    from scipy import stats

    d = (first - second).double().cpu().numpy()
    differ = (d != 0).sum(0)
    tested = np.flatnonzero(differ >= FEWEST)
    effect, q = np.zeros(d.shape[1]), np.ones(d.shape[1])
    if len(tested):
        found: list[Any] = [stats.wilcoxon(d[d[:, j] != 0, j], alternative="greater", method="approx") for j in tested]
        sums = np.array([f.statistic for f in found])  # of the ranks of positive differences
        n = differ[tested]
        effect[tested] = 4 * sums / (n * (n + 1)) - 1
        q[tested] = stats.false_discovery_control([f.pvalue for f in found], method="bh")
    return Paired(torch.from_numpy(effect).float(), torch.from_numpy(q).float())


def wrapped_pairs(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[tuple[Conversation, Conversation]]:
    """Each request as it stands and in a jailbreak wrapper, those for training in turn; without those that do not fit."""
    some = evenly(shipped_wrappers("train"), len(prompts))
    pairs = [(p.conversation, some[i % len(some)].wrap(p).conversation) for i, p in enumerate(prompts)]
    return [pair for pair in pairs if fits(lm, pair[1])]


def fits(lm: LanguageModel, conversation: Conversation) -> bool:
    """Whether the model's context holds it, and a reply of `REPLY` tokens."""
    try:
        return len(tokens_and_roles(lm, conversation)[0]) + REPLY <= lm.context
    except PromptError:
        return False


def cosines(W_dec: Float[Tensor, "d_sae d_model"], direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_sae"]:
    """Of each decoder row with a direction, such as the refusal direction, a difference of means (Arditi et al., arXiv
    2406.11717).
    """
    rows = torch.nn.functional.normalize(W_dec.float(), dim=1)
    return rows @ torch.nn.functional.normalize(direction.to(rows), dim=0)


def attribution(
    branches: Branches,
    conversations: Sequence[Conversation],
    beginnings: Sequence[Sequence[int]],
    levels: Float[Tensor, " d_sae"],
    held: Values | None = None,
    what: str = "attributing the odds of a refusal",
) -> Float[Tensor, " d_sae"]:
    """What clamping each feature to its level on the reply would add to the log-odds of a refusal, to first order.

    `Σ_t (level − f(x_t)) · W_dec ∇_t`, where the gradient is that of the log-odds (`effect.refusal_log_odds`) by the
    stream at the reply's token t: attribution patching on SAE features (Syed et al., arXiv 2310.10348; Marks et al.,
    arXiv 2403.19647), from the present activation to the level. Mean over conversations, in nats. `held` are features
    clamped beside it.
    """
    sae = branches.bench.sae
    clamp = branches.clamping([held or {}])
    total = torch.zeros(sae.config.d_sae)
    with bar(what, len(conversations)) as progress:
        for conversation in conversations:
            seen: list[Tensor] = []

            def change(x: Tensor, which: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(clamp(x, torch.zeros_like(which)).detach().requires_grad_())
                return seen[-1]

            said = branches.log_probs(conversation, beginnings, change)
            sums = torch.stack([chosen(rows, b).sum() for rows, b in zip(said, beginnings, strict=True)])
            odds(sums).backward()
            for x in seen:
                assert x.grad is not None
                slope = x.grad.float() @ sae.W_dec.float().T
                f = sae.encode(x.detach()).float()
                total += ((levels.to(f) - f) * slope).sum(0).cpu()
            progress.step()
    return total / len(conversations)


def logit_lens(lm: LanguageModel, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """What the model's last norm and head make of directions (nostalgebraist, 2020): the directions, handed over where
    the last block's output is expected.
    """
    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=lm.device)
    with torch.inference_mode(), at_blocks({lm.blocks[-1]: lambda h: rows[:, None].to(h)}):
        return lm.logits(ids, last=1)[:, 0].float()


def output_scores(bench: Bench, features: Sequence[int], batch: int = 256) -> dict[int, float]:
    """Whether a feature writes what its decoder row says (Arad et al., arXiv 2505.20063, section 3.2).

    Raised at the last token of a neutral text by ten times the strongest activation there: `(1 − r / |V|) · p`, with r
    the best rank, from 0, and p the largest probability that any of its logit-lens tokens then has.
    """
    lm, sae = bench.lm, bench.sae
    ids = lm.tokenizer(NEUTRAL)["input_ids"]
    found: dict[int, float] = {}
    for start in range(0, len(features), batch):
        group = list(features[start : start + batch])
        rows = sae.W_dec[group]
        tokens = logit_lens(lm, rows).topk(TOKENS, dim=1).indices

        def raised(hidden: Tensor, rows: Tensor = rows) -> Tensor:
            last = hidden[:, -1]
            strongest = sae.encode(last[:1]).max()
            return torch.cat([hidden[:, :-1], (last + AMPLIFIED * strongest * rows)[:, None].to(hidden)], dim=1)

        with torch.inference_mode(), at_blocks({lm.block(sae.config.site): raised}):
            p = lm.logits(torch.tensor([ids] * len(group), device=lm.device), last=1)[:, 0].float().softmax(-1)
        of_tokens = p.gather(1, tokens)
        best = of_tokens.amax(1)
        rank = (p > best[:, None]).sum(1)
        found |= dict(zip(group, ((1 - rank / p.shape[1]) * best).tolist(), strict=True))
    return found


def best(scores: Float[Tensor, " d_sae"] | Mapping[int, float], depth: int) -> dict[int, float]:
    """The features with the highest scores above 0, best first; of equal ones the lowest number."""
    if isinstance(scores, Mapping):
        found = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    else:
        order = scores.argsort(descending=True, stable=True)[:depth].tolist()
        found = [(f, float(scores[f])) for f in order]
    return {f: s for f, s in found[:depth] if s > 0}
