"""Candidates: features that several signals speak for, bounded by evidence before any of them is raised.

Dense features and the template's are dropped first. Every signal then orders what is left by itself, the orders are
merged, and what the merged ones do when raised is measured on validation prompts.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from demur.activations.harvest import read
from demur.data.wrappers import WRAPPED
from demur.errors import SAEError
from demur.features.branches import Branches
from demur.features.contrast import ReplyStatistics, read_replies, separation
from demur.features.effect import Bench, Conversation, try_policies
from demur.features.optimise import descend, rehearse_freely
from demur.features.pursuit import pursue
from demur.features.reading import read_prompts
from demur.features.replies import Replies, beginnings, sentences, usual_norm
from demur.features.settings import FindSettings
from demur.features.signals import (
    FALSE_DISCOVERIES,
    attribution,
    best,
    cosines,
    output_scores,
    paired,
    wrapped_pairs,
)
from demur.models.chat import Role, tokens_and_roles
from demur.progress import bar
from demur.records import Feature, Prompt, PromptSet, Record, evenly

ANYWAY, ALIKE = 0.5, 0.2
"""One active in more than this share of refusals and of compliant replies, and less apart in them than so many standard
deviations, is about replies as such."""
DEPTH = 100
"""Features that each signal names."""
SMOOTH = 60
"""What is added to ranks before their reciprocals are summed (Cormack et al., 2009)."""
LEAST = 0.1
"""Least value that a candidate is raised to, as a share of the residual stream's norm."""
SIDE = 0.5
"""What a nat of the odds, or a refusal, costs on harmless prompts, for one won on harmful ones."""


class Signals(Record):
    """What was found out of features before any was raised."""

    norm: float
    """The residual stream's usual norm at the last prompt token."""
    levels: dict[int, float]
    """What each named feature is raised to: its usual maximum in refusals or what descent gave it, whichever is more."""
    scores: dict[str, dict[int, float]]
    """By signal, the features it names, best first."""
    dropped: dict[str, int]
    """Features left out beforehand, by reason."""


def fused(rankings: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """All features that some signal names, best first, by reciprocal rank fusion.

    `Σ 1 / (60 + rank)` over the signals that name a feature (Cormack, Clarke and Büttcher, SIGIR 2009).
    """
    sums: dict[int, float] = {}
    for ranking in rankings.values():
        for rank, feature in enumerate(ranking, 1):
            sums[feature] = sums.get(feature, 0.0) + 1 / (SMOOTH + rank)
    return dict(sorted(sums.items(), key=lambda pair: (-pair[1], pair[0])))


def merged(rankings: Mapping[str, Mapping[int, float]], count: int, sure: int) -> list[int]:
    """`count` features (more, if more are sure), best first: each signal's `sure` best, whatever the others say of them,
    and the best of all by fusion. A feature that works only through others may be known to one signal alone.
    """
    order = list(fused(rankings))
    kept = {f for ranking in rankings.values() for f in list(ranking)[:sure]}
    kept |= set([f for f in order if f not in kept][: max(0, count - len(kept))])
    return [f for f in order if f in kept]


def on_ordinary_text(
    bench: Bench, conversations: Sequence[Conversation]
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """The share of the words of harmless requests on which each feature is active; and, of that token of the template
    behind a request on which it is active most, the share of the places.

    What stands before the request is not read: the words of a system prompt are the same every time, and so would be
    whatever fires on them.
    """
    width = bench.sae.config.d_sae
    words, active = 0, torch.zeros(width)
    places: dict[int, int] = {}
    on_template: dict[int, Tensor] = {}
    with bar("reading ordinary text", len(conversations)) as progress:
        for conversation in conversations:
            ids, roles = tokens_and_roles(bench.lm, conversation)
            hidden = read(bench.lm, [bench.sae.config.site], torch.tensor([ids], device=bench.lm.device))
            on = (bench.sae.encode(hidden[bench.sae.config.site][0]) > 0).float().cpu()
            own = torch.tensor([r == Role.USER for r in roles])
            words, active = words + int(own.sum()), active + on[own].sum(0)
            last = int(own.nonzero().max()) if own.any() else len(ids)
            for at in range(last + 1, len(ids)):
                places[ids[at]] = places.get(ids[at], 0) + 1
                on_template[ids[at]] = on_template.get(ids[at], torch.zeros(width)) + on[at]
            progress.step()
    rates = [count / places[token] for token, count in on_template.items()]
    most = torch.stack(rates).amax(0) if rates else torch.zeros(width)
    return active / max(1, words), most


def left_out(
    words: Float[Tensor, " d_sae"],
    template: Float[Tensor, " d_sae"],
    refusing: ReplyStatistics,
    complying: ReplyStatistics | None,
    settings: FindSettings,
) -> dict[str, Bool[Tensor, " d_sae"]]:
    """Features that are not about refusing, whatever raising them does, by reason; each has one reason."""
    dense = words > settings.dense
    of_template = (template > settings.template) & (template > words) & ~dense
    found = {"dense": dense, "template": of_template}
    if complying is not None:
        anyway = (refusing.twice > ANYWAY) & (complying.twice > ANYWAY)
        alike = separation(refusing, complying).abs() < ALIKE
        found["any reply"] = anyway & alike & ~dense & ~of_template
    return found


def gather(
    bench: Bench,
    branches: Branches,
    replies: Replies,
    prompts: Sequence[Prompt],
    ordinary: Sequence[Conversation],
    settings: FindSettings,
) -> Signals:
    """Every signal, on training prompts.

    Args:
        bench: Model and SAE.
        branches: The same, for trials.
        replies: To harmful prompts.
        prompts: Harmful ones, on which descent goes.
        ordinary: Harmless ones.
        settings: How many.

    Raises:
        SAEError: no feature speaks for itself.
    """
    lm, sae, s = bench.lm, bench.sae, settings
    norm = usual_norm(bench, replies.conversations)
    openings = beginnings(bench, s.openings)
    refusing = read_replies(lm, sae, replies.conversations, replies.ours)
    complied = [i for i, refused in enumerate(replies.refused) if not refused]
    complying = None
    if complied:
        talk = [replies.conversations[i] for i in complied]
        complying = read_replies(lm, sae, talk, [replies.plain[i] for i in complied])
    out = left_out(*on_ordinary_text(bench, ordinary), refusing, complying, s)
    allowed = ~torch.stack(list(out.values())).any(0)
    if not allowed.any():
        raise SAEError(
            f"all {sae.config.d_sae} features of the SAE are dense or about the template; train it with fewer active "
            "features (--k), or on text in the chat template."
        )

    def named(scores: Tensor) -> dict[int, float]:
        return best(torch.where(allowed, scores, torch.zeros(())), DEPTH)

    amounts = descend(bench, prompts, sentences(bench, s.openings), norm, s.seed, allowed)
    direction = rehearse_freely(bench, prompts, amounts, norm, s.seed)
    likely = allowed.nonzero()[:, 0].tolist()
    found = {
        "descent": dict(list(amounts.items())[:DEPTH]),
        "rehearsal": pursue(direction, sae.W_dec, likely, s.actuators),
    }
    some = [p.conversation for p in evenly(prompts, s.attributed)]
    found["attribution"] = named(attribution(branches, some, openings, refusing.level))
    if complying is not None:
        found["contrast"] = named(separation(refusing, complying))
        found["cosine"] = named(cosines(sae.W_dec, refusing.stream - complying.stream).cpu())
    if pairs := wrapped_pairs(lm, evenly([p for p in prompts if p.source != WRAPPED], s.paired)):
        pools = read_prompts(lm, sae, [c for pair in pairs for c in pair], ["last"])["last"]
        tested = paired(pools[0::2], pools[1::2])
        found["paired"] = named(torch.where(tested.q < FALSE_DISCOVERIES, tested.effect, torch.zeros(())))
    everyone = {f for ranking in found.values() for f in ranking}
    return Signals(
        norm=norm,
        levels={f: max(float(refusing.level[f]), amounts.get(f, 0.0), LEAST * norm) for f in sorted(everyone)},
        scores=found,
        dropped={why: int(which.sum()) for why, which in out.items()},
    )


def candidates(
    bench: Bench, branches: Branches, signals: Signals, validation: PromptSet, settings: FindSettings
) -> list[Feature]:
    """The merged features with every score, and what each does alone on validation prompts, best first.

    All are measured by the odds of a refusal, on harmful and on harmless prompts; the best few by generating.
    """
    s = settings
    chosen = list(dict.fromkeys([*merged(signals.scores, s.candidates, s.sure), *signals.scores["rehearsal"]]))
    rankings = {**signals.scores, "output": best(output_scores(bench, chosen), len(chosen))}
    order = [f for f in fused(rankings) if f in set(chosen)]
    harmful, benign = validation.where(label="harmful"), validation.where(label="benign")
    trials = [{}, *({f: signals.levels[f]} for f in order)]
    openings = beginnings(bench, s.openings)
    gains: list[list[float]] = []
    for rows, whom in ((harmful, "harmful"), (benign, "harmless")):
        talk = [row.conversation for row in rows.sample(s.scored).rows]
        odds = branches.refusal_log_odds(trials, talk, openings, f"scoring candidates on {whom} prompts").mean(1)
        gains.append((odds[1:] - odds[0]).tolist())
    worth = {f: bad - SIDE * good for f, bad, good in zip(order, *gains, strict=True)}
    short = sorted(order, key=lambda f: -worth[f])[: None if s.full else s.shortlist]
    tried = try_policies(
        bench,
        [bench.raising({f: signals.levels[f]}, "reply") for f in short],
        harmful.sample(s.singly).rows,
        benign.sample(s.singly).rows,
        what="trying candidates",
    )
    by_trying = dict(zip(short, tried, strict=True))
    found = []
    for rank, (f, bad, good) in enumerate(zip(order, *gains, strict=True), 1):
        scores = {name: ranking[f] for name, ranking in rankings.items() if f in ranking}
        scores |= {"rank": float(rank), "log_odds_gain": bad, "benign_log_odds_gain": good}
        if (t := by_trying.get(f)) is not None:
            scores |= {"harmful_refused": t.refused, "benign_refused": t.benign_refused, "degenerate": t.degenerate}
        found.append(Feature(id=f, role="actuator", level=signals.levels[f], scores=scores))
    return sorted(found, key=lambda c: (-refusals_won(c), -worth[c.id]))


def refusals_won(candidate: Feature) -> float:
    """By generating: harmful prompts refused, less harmless ones at half their weight and broken replies; -1 if untried."""
    s = candidate.scores
    if "harmful_refused" not in s:
        return -1.0
    return s["harmful_refused"] - SIDE * s["benign_refused"] - s["degenerate"]
