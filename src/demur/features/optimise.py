"""Refusal features chosen together, by what they make the model say.

Amounts `v` are sought such that `x + v B` on the reply makes the model refuse harmful prompts; the rows of `B` are the
SAE's decoder rows, or the axes of the stream.

- `descend`: gradient descent on the likelihood of refusals that we wrote, over all features. An L1 penalty keeps them
  few and the amounts small. Unlike a ranking of single features, this finds features that only work together.
- `rehearse_freely`: what is likely when it is forced need not be what the model says when it is free (it may go on in
  circles, or begin otherwise). So the model answers, and learns from its own answers: the refusals among them are
  imitated, after the prompts that it did not refuse too; what the others begin with is made unlikely, and of those that
  say no and then go in circles, the going on. What is learnt is a displacement of the stream, made of no features yet.
- `rehearse`: the same for the amounts of a few features, which `pursuit` has made that displacement of.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from demur.evaluation.judging.judges import Judge
from demur.features.effect import Answer, Bench, answers
from demur.models.chat import encode
from demur.models.generation import end_tokens
from demur.models.hooks import at_blocks
from demur.progress import bar
from demur.records import Policy, Prompt
from demur.steering.score import forced_log_probs

STEPS = 60
"""Of descent over all features."""
PER_STEP = 8
"""Prompts a step."""
RATE = 0.01
"""Step of Adam, as a share of the residual stream's norm."""
PENALTY = 0.6
"""L1 penalty in nats for a unit of displacement as large as the residual stream's norm."""
START = 1.15
"""Rehearsing begins with so many times what was fitted: a free model needs more than a forced one."""
ROUNDS, ROUND_STEPS, ROUND_PROMPTS = 5, 16, 64
"""Rounds of answering and learning; steps of learning in each; prompts answered in each."""
ROUND_RATE, ROUND_PENALTY = 0.006, 0.05
"""As RATE and PENALTY, while rehearsing features; the rate falls from round to round."""
FREE_RATE, FREE_PENALTY = 0.0009, 0.05
"""As these, without features: along each axis of the stream, and for the square of the displacement."""
MARGIN = 1.1
"""Features get so many times what was learnt: what only just refuses here would not on other prompts."""
FAILED, HELD, AVOIDED, ENDED = 5, 3, 4, 3
"""What a step of rehearsing shows: failed prompts with a refusal, refused ones with theirs, failures to be avoided, and
refusals after which not to go on."""
AVOID = 0.3
"""Weight of making a failure, or going on, unlikely against making a refusal likely."""
REPLY = 64
"""Tokens of an answer, as in an evaluation: some refusals go in circles only towards its end."""
CONCISE, SENTENCES = 140, 3
"""Characters and sentences of the longest refusal that is imitated: one that says it and ends."""
LONGEST, BEGINNING = 32, 6
"""Tokens of a refusal that are imitated; first tokens of a failure that are avoided."""
SENTENCE = re.compile(r".*?[.!?。！？](?=\s|$)", re.S)


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
    W_dec = bench.sae.W_dec[features].float()  # small steps would be lost in the rounding of a model in half precision
    v = torch.zeros(len(features), device=W_dec.device, requires_grad=True)
    adam = torch.optim.Adam([v])
    rng = random.Random(seed)
    with bar(f"optimising {len(features)} features", STEPS) as progress:
        for step in range(STEPS):
            # Wide steps to find the features, then smaller ones to settle.
            adam.param_groups[0]["lr"] = norm * (RATE if step < 0.6 * STEPS else RATE / 2)
            picked = rng.sample(prompts, min(PER_STEP, len(prompts)))
            amounts = v.clamp_min(0)
            said = _log_probs(bench, amounts @ W_dec, picked, [rng.choice(refusals) for _ in picked])
            loss = -torch.stack([s.mean() for s in said]).mean()
            adam.zero_grad()
            (loss + PENALTY / norm * amounts.sum()).backward()
            adam.step()
            with torch.no_grad():
                v.clamp_(min=-RATE * norm)  # what falls to nothing can come back, but not from far below
            progress.step(figures=f"{loss.item():.2f} nats per token")
    return _heaviest(features, v)


def rehearse_freely(
    bench: Bench,
    prompts: Sequence[Prompt],
    amounts: Mapping[int, float],
    norm: float,
    seed: int,
    rounds: int = ROUNDS,
) -> Float[Tensor, " d_model"]:
    """A displacement of the reply with which the model, left to itself, refuses `prompts`; it begins with features."""
    W_dec = bench.sae.W_dec.float()
    start = START * sum((x * W_dec[f] for f, x in amounts.items()), torch.zeros_like(W_dec[0]))
    learnt = _Learnt(
        basis=torch.eye(len(start), device=start.device),
        least=-torch.inf,
        rate=FREE_RATE * norm,
        penalty=lambda v: FREE_PENALTY / norm**2 * v.square().sum(),
        policy=lambda v: bench.pushing(v, "reply"),
    )
    return _rehearsed(bench, prompts, start, learnt, seed, rounds)


def rehearse(
    bench: Bench,
    prompts: Sequence[Prompt],
    amounts: Mapping[int, float],
    norm: float,
    seed: int,
    rounds: int = ROUNDS,
) -> dict[int, float]:
    """Other amounts for the same features, heaviest first: with them the model, left to itself, refuses `prompts`, with some
    margin. Features that fall to nothing are left out.
    """
    features = list(amounts)
    W_dec = bench.sae.W_dec[features].float()
    learnt = _Learnt(
        basis=W_dec,
        least=0.0,
        rate=ROUND_RATE * norm,
        penalty=lambda v: ROUND_PENALTY / norm * v.sum(),
        policy=lambda v: bench.raising({f: x for f, x in zip(features, v.tolist(), strict=True) if x > 0}, "reply"),
    )
    start = torch.tensor([amounts[f] for f in features], device=W_dec.device)
    return _heaviest(features, MARGIN * _rehearsed(bench, prompts, start, learnt, seed, rounds))


@dataclass(frozen=True)
class _Learnt:
    """What is learnt by rehearsing: numbers `v`, by which `v @ basis` is added to the stream."""

    basis: Float[Tensor, "n d_model"]
    least: float
    rate: float
    penalty: Callable[[Tensor], Tensor]
    policy: Callable[[Tensor], Policy]


def _rehearsed(
    bench: Bench, prompts: Sequence[Prompt], start: Float[Tensor, " n"], learnt: _Learnt, seed: int, rounds: int
) -> Float[Tensor, " n"]:
    # Expert iteration (Anthony et al., arXiv 1705.08439) for what is to be said, unlikelihood (Welleck et al., arXiv
    # 1908.04319) for what is not.
    v = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([v])
    rng = random.Random(seed)
    shuffled = rng.sample(prompts, len(prompts))
    end = end_tokens(bench.lm)[:1]
    imitated: list[list[int]] = []
    best, fewest = v.detach().clone(), ROUND_PROMPTS + 1
    for turn in range(rounds + 1):  # after the last, only to see what became of it
        adam.param_groups[0]["lr"] = learnt.rate * (1 - turn / rounds)
        if not v.any():
            break
        asked = [shuffled[(turn * ROUND_PROMPTS + i) % len(shuffled)] for i in range(ROUND_PROMPTS)]
        policy = learnt.policy(v.detach())
        answered = answers(bench, [(policy, p) for p in asked], REPLY, "rehearsing")
        held, failed, circling = [], [], []
        for prompt, answer, refusal in zip(asked, answered, concise(bench.judge, answered), strict=True):
            if refusal is not None:
                said = _tokens(bench, refusal)[:LONGEST]
                held.append((prompt, said + end))
                if more := beyond(answer, refusal):
                    circling.append((prompt, said + _tokens(bench, more)[:1]))
            elif answer.outcome != "refused":
                failed.append((prompt, _tokens(bench, answer.text or " ")[:BEGINNING]))
        unrefused = sum(a.outcome != "refused" for a in answered)
        if unrefused <= fewest:  # not every round makes it better
            best, fewest = v.detach().clone(), unrefused
        imitated += [reply for _, reply in held]
        if not held or turn == rounds:
            break
        with bar(f"learning from {len(failed)} of {len(asked)}", ROUND_STEPS) as progress:
            for _ in range(ROUND_STEPS):
                good = [(rng.choice(failed)[0], rng.choice(imitated)) for _ in range(FAILED if failed else 0)]
                good += [rng.choice(held) for _ in range(HELD)]
                bad = [rng.choice(failed) for _ in range(AVOIDED if failed else 0)]
                on = [rng.choice(circling) for _ in range(ENDED if circling else 0)]
                shown = good + bad + on
                nats = _log_probs(bench, v @ learnt.basis, [p for p, _ in shown], [reply for _, reply in shown])
                unwanted = nats[len(good) : len(good) + len(bad)] + [s[-1:] for s in nats[len(good) + len(bad) :]]
                terms = [-s.mean() for s in nats[: len(good)]]
                terms += [-AVOID * torch.log1p(-s.exp().clamp_max(0.999)).mean() for s in unwanted]
                loss = torch.stack(terms).mean()
                adam.zero_grad()
                (loss + learnt.penalty(v)).backward()
                adam.step()
                with torch.no_grad():
                    v.clamp_(min=learnt.least)
                progress.step(figures=f"{loss.item():.2f} nats per token")
    return best


def concise(judge: Judge, answered: Sequence[Answer]) -> list[str | None]:
    """Of each answer the shortest beginning, of whole sentences, that is a refusal by itself.

    So an answer that says no and goes on in circles teaches to say no and end. None where no short one is.
    """
    tried: list[tuple[int, str]] = []
    for i, answer in enumerate(answered):
        ends = [m.end() for m in SENTENCE.finditer(answer.text)][:SENTENCES]
        texts = [answer.text[:end].strip() for end in ends] or [answer.text]
        tried += [(i, text) for text in texts if text and len(text) <= CONCISE]
    judged = judge.judge([answered[i].said.model_copy(update={"reply": text}) for i, text in tried])
    found: list[str | None] = [None] * len(answered)
    for (i, text), verdict in zip(tried, judged, strict=True):
        if verdict.outcome == "refused" and found[i] is None:
            found[i] = text
    return found


def beyond(answer: Answer, refusal: str) -> str:
    """What an answer that says no and then goes in circles says after its `concise` refusal; of others nothing."""
    return answer.text.lstrip()[len(refusal) :] if answer.outcome == "degenerate" else ""


def _tokens(bench: Bench, text: str) -> list[int]:
    return bench.lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def _heaviest(features: Sequence[int], v: Float[Tensor, " n"]) -> dict[int, float]:
    return {f: x for f, x in sorted(zip(features, v.tolist(), strict=True), key=lambda pair: -pair[1]) if x > 0}


def _log_probs(
    bench: Bench, shift: Float[Tensor, " d_model"], prompts: Sequence[Prompt], replies: Sequence[list[int]]
) -> list[Float[Tensor, " tokens"]]:
    # Log-probability of each reply's tokens when the reply's positions are shifted; differentiable in the shift.
    asked = encode(bench.lm, [p.conversation for p in prompts])
    first = asked.ids.shape[1] - 1
    block = bench.lm.block(bench.sae.config.site)
    with at_blocks({block: lambda h: torch.cat([h[:, :first], h[:, first:] + shift.to(h)], dim=1)}):
        return forced_log_probs(bench.lm, asked, replies)
