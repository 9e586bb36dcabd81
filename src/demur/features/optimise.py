"""Refusal features chosen together, by what they make the model say.

A few non-negative amounts `v` are sought, one per feature, such that `x + Σ v_j W_dec[j]` on the reply makes the model
refuse harmful prompts. Unlike a ranking of single features, this finds features that only work together. Three stages:

- `descend`: gradient descent on the likelihood of refusals that we wrote, over all features. An L1 penalty keeps them
  few and the amounts small.
- `refit`: the same over the few that were chosen, also by other signals (`candidates`).
- `rehearse`: what is likely when it is forced need not be what the model says when it is free (it may go on in circles,
  or begin otherwise). So the model answers, and learns from its own answers: those that the judge calls refusals are
  imitated, after the prompts that it did not refuse too; the others are made unlikely.
"""

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from demur.features.effect import Bench, answers
from demur.models.chat import encode
from demur.models.generation import end_tokens
from demur.models.hooks import at_blocks
from demur.progress import bar
from demur.records import Prompt
from demur.steering.score import forced_log_probs

STEPS, REFITS = 60, 30
"""Steps over all features, then over the chosen ones."""
PER_STEP = 8
"""Prompts a step."""
RATE = 0.01
"""Step of Adam, as a share of the residual stream's norm."""
PENALTY = 0.6
"""L1 penalty in nats for a unit of displacement as large as the residual stream's norm."""
START = 1.15
"""Rehearsing begins with so many times the amounts that were fitted: a free model needs more than a forced one."""
ROUNDS, ROUND_STEPS, ROUND_PROMPTS = 5, 16, 64
"""Rounds of answering and learning; steps of learning in each; prompts answered in each."""
ROUND_RATE, ROUND_PENALTY = 0.006, 0.2
"""As RATE and PENALTY, while rehearsing; the rate falls from round to round."""
FAILED, HELD, AVOIDED = 5, 3, 4
"""What a step of rehearsing shows: failed prompts with a refusal, refused ones with theirs, failures to be avoided."""
AVOID = 0.3
"""Weight of making a failure unlikely against making a refusal likely."""
CONCISE = 140
"""Characters of the longest refusal that is imitated: one that says it and ends."""
LONGEST, BEGINNING = 32, 6
"""Tokens of a refusal that are imitated; first tokens of a failure that are avoided."""


def descend(
    bench: Bench,
    prompts: Sequence[Prompt],
    refusals: Sequence[list[int]],
    norm: float,
    seed: int,
    allowed: Bool[Tensor, " d_sae"] | None = None,
) -> dict[int, float]:
    """Features (of those allowed) and the amounts to raise them by, in the SAE's units, heaviest first.

    `refusals` are token ids, one of which is drawn for each prompt at each step; `norm` is the residual stream's usual
    norm at the site.
    """
    features = list(range(bench.sae.config.d_sae)) if allowed is None else allowed.nonzero()[:, 0].tolist()
    return _fitted(bench, prompts, refusals, dict.fromkeys(features, 0.0), norm, seed, STEPS, PENALTY, _descending)


def refit(
    bench: Bench,
    prompts: Sequence[Prompt],
    refusals: Sequence[list[int]],
    amounts: Mapping[int, float],
    norm: float,
    seed: int,
) -> dict[int, float]:
    """Other amounts for a few features, with a lighter penalty; those that fall to nothing are left out."""
    return _fitted(bench, prompts, refusals, amounts, norm, seed, REFITS, PENALTY / 8, _settling)


def _fitted(
    bench: Bench,
    prompts: Sequence[Prompt],
    refusals: Sequence[list[int]],
    start: Mapping[int, float],
    norm: float,
    seed: int,
    steps: int,
    penalty: float,
    rate: Callable[[int], float],
) -> dict[int, float]:
    features = list(start)
    W_dec = bench.sae.W_dec[features].float()  # small steps would be lost in the rounding of a model in half precision
    v = torch.tensor([start[f] for f in features], device=W_dec.device, requires_grad=True)
    adam = torch.optim.Adam([v], lr=RATE * norm)
    rng = random.Random(seed)
    with bar(f"optimising {len(features)} features", steps) as progress:
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate(step) * norm
            picked = rng.sample(prompts, min(PER_STEP, len(prompts)))
            amounts = v.clamp_min(0)
            said = _log_probs(bench, amounts @ W_dec, picked, [rng.choice(refusals) for _ in picked])
            loss = -torch.stack([s.mean() for s in said]).mean()
            adam.zero_grad()
            (loss + penalty / norm * amounts.sum()).backward()
            adam.step()
            with torch.no_grad():
                v.clamp_(min=-RATE * norm)  # what falls to nothing can come back, but not from far below
            progress.step(figures=f"{loss.item():.2f} nats per token")
    return _heaviest(dict(zip(features, v.tolist(), strict=True)))


def _descending(step: int) -> float:
    # Wide steps to find the features, then smaller ones to settle.
    return RATE if step < 0.6 * STEPS else RATE / 2


def _settling(step: int) -> float:
    # Down to nearly nothing.
    return RATE / 2 * (1.1 - step / REFITS)


def rehearse(
    bench: Bench, prompts: Sequence[Prompt], amounts: Mapping[int, float], norm: float, seed: int
) -> dict[int, float]:
    """Other amounts for the same features, heaviest first: with them the model, left to itself, refuses `prompts`.

    Expert iteration (Anthony et al., arXiv 1705.08439) for what is to be said, unlikelihood (Welleck et al., arXiv
    1908.04319) for what is not. Features that fall to nothing are left out.
    """
    features = list(amounts)
    W_dec = bench.sae.W_dec[features].float()
    v = torch.tensor([START * amounts[f] for f in features], device=W_dec.device, requires_grad=True)
    adam = torch.optim.Adam([v], lr=ROUND_RATE * norm)
    rng = random.Random(seed)
    shuffled = rng.sample(prompts, len(prompts))
    end = end_tokens(bench.lm)[:1]
    refusals: list[list[int]] = []
    for turn in range(ROUNDS):
        adam.param_groups[0]["lr"] = ROUND_RATE * norm * (1 - turn / ROUNDS)
        asked = [shuffled[(turn * ROUND_PROMPTS + i) % len(shuffled)] for i in range(ROUND_PROMPTS)]
        raised = {f: x for f, x in zip(features, v.tolist(), strict=True) if x > 0}
        if not raised:
            break
        policy = bench.raising(raised, "reply")
        held, failed = [], []
        for prompt, answer in zip(asked, answers(bench, [(policy, p) for p in asked], what="rehearsing"), strict=True):
            reply = bench.lm.tokenizer(answer.text or " ", add_special_tokens=False)["input_ids"]
            if answer.outcome != "refused":
                failed.append((prompt, reply[:BEGINNING]))
            elif len(answer.text) <= CONCISE:
                held.append((prompt, reply[:LONGEST] + end))
        refusals += [reply for _, reply in held]
        if not held:
            break
        with bar(f"learning from {len(failed)} of {len(asked)}", ROUND_STEPS) as progress:
            for _ in range(ROUND_STEPS):
                good = [(rng.choice(failed)[0], rng.choice(refusals)) for _ in range(FAILED if failed else 0)]
                good += [rng.choice(held) for _ in range(HELD)]
                bad = [rng.choice(failed) for _ in range(AVOIDED if failed else 0)]
                shift = v.clamp_min(0) @ W_dec
                said = _log_probs(
                    bench, shift, [prompt for prompt, _ in good + bad], [reply for _, reply in good + bad]
                )
                terms = [-s.mean() for s in said[: len(good)]]
                terms += [-AVOID * torch.log1p(-s.exp().clamp_max(0.999)).mean() for s in said[len(good) :]]
                loss = torch.stack(terms).mean()
                adam.zero_grad()
                (loss + ROUND_PENALTY / norm * v.clamp_min(0).sum()).backward()
                adam.step()
                with torch.no_grad():
                    v.clamp_(min=0)
                progress.step(figures=f"{loss.item():.2f} nats per token")
    return _heaviest(dict(zip(features, v.tolist(), strict=True)))


def _heaviest(amounts: Mapping[int, float]) -> dict[int, float]:
    return {f: x for f, x in sorted(amounts.items(), key=lambda pair: -pair[1]) if x > 0}


def _log_probs(
    bench: Bench, shift: Float[Tensor, " d_model"], prompts: Sequence[Prompt], replies: Sequence[list[int]]
) -> list[Float[Tensor, " tokens"]]:
    # Log-probability of each reply's tokens when the reply's positions are shifted; differentiable in the shift.
    asked = encode(bench.lm, [p.conversation for p in prompts])
    first = asked.ids.shape[1] - 1
    block = bench.lm.block(bench.sae.config.site)
    with at_blocks({block: lambda h: torch.cat([h[:, :first], h[:, first:] + shift.to(h)], dim=1)}):
        return forced_log_probs(bench.lm, asked, replies)
