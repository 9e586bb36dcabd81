"""Refusal features chosen together, by what they make the model say: gradient descent through the model.

A few non-negative amounts `v` are sought, one per feature, such that `x + Σ v_j W_dec[j]` on the reply makes refusals
likely after harmful prompts. An L1 penalty keeps them few and small; the lightest are then dropped and the rest fitted
again. Unlike a ranking of single features, this finds features that only work together.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from demur.features.effect import Bench, Conversation
from demur.models.chat import tokens_and_roles
from demur.models.hooks import at_blocks
from demur.progress import bar

STEPS, REFITS = 40, 15
"""Steps over all features, then over the kept ones."""
PER_STEP = 8
"""Prompts a step."""
RATE = 0.01
"""Step of Adam, as a share of the residual stream's norm."""
PENALTY = 0.6
"""L1 penalty in nats for a unit of displacement as large as the residual stream's norm."""


def optimise(
    bench: Bench,
    conversations: Sequence[Conversation],
    refusals: Sequence[list[int]],
    count: int,
    norm: float,
    seed: int,
) -> dict[int, float]:
    """At most `count` features and the amounts to raise them by, in the SAE's units, heaviest first.

    `refusals` are token ids, one for each conversation; `norm` is the residual stream's usual norm at the site.
    """
    rows = [tokens_and_roles(bench.lm, c)[0] for c in conversations]
    v = torch.zeros(bench.sae.config.d_sae, requires_grad=True)
    adam = torch.optim.Adam([v], lr=RATE * norm)
    mask = torch.ones_like(v)
    rng = random.Random(seed)
    plan = [*([PENALTY / norm] * STEPS), *([PENALTY / norm / 8] * REFITS)]
    with bar("optimising features", len(plan)) as progress:
        for step, penalty in enumerate(plan):
            if step == STEPS:
                mask[v.detach().argsort(descending=True)[count:]] = 0
            picked = rng.sample(range(len(rows)), min(PER_STEP, len(rows)))
            amounts = v.clamp_min(0) * mask
            loss = _surprise(bench, amounts @ bench.sae.W_dec, [rows[i] for i in picked], [refusals[i] for i in picked])
            adam.zero_grad()
            (loss + penalty * amounts.sum()).backward()
            adam.step()
            with torch.no_grad():
                v.clamp_(min=-RATE * norm)  # what falls to nothing can come back, but not from far below
            progress.step(figures=f"{loss.item():.2f} nats per token")
    amounts = (v.detach().clamp_min(0) * mask).tolist()
    return {f: amounts[f] for f in sorted(range(len(amounts)), key=lambda f: -amounts[f])[:count] if amounts[f] > 0}


def _surprise(
    bench: Bench, shift: Float[Tensor, " d_model"], prompts: Sequence[list[int]], refusals: Sequence[list[int]]
) -> Float[Tensor, ""]:
    # Mean negative log-probability of the refusals' tokens when the reply's positions are shifted.
    width = max(len(p) + len(r) for p, r in zip(prompts, refusals, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    shifted = torch.zeros(len(prompts), width, 1)
    for row, (prompt, refusal) in enumerate(zip(prompts, refusals, strict=True)):
        ids[row, : len(prompt) + len(refusal)] = torch.tensor(prompt + refusal)
        shifted[row, len(prompt) - 1 :] = 1
    block = bench.lm.block(bench.sae.config.site)
    with at_blocks({block: lambda hidden: hidden + shifted.to(hidden) * shift.to(hidden)}):
        logits = bench.lm.logits(ids.to(bench.lm.device)).float().log_softmax(-1).cpu()
    total = torch.zeros(())
    for row, (prompt, refusal) in enumerate(zip(prompts, refusals, strict=True)):
        said = logits[row, len(prompt) - 1 : len(prompt) - 1 + len(refusal)]
        total = total - said.gather(1, torch.tensor(refusal)[:, None]).mean()
    return total / len(prompts)
