"""Finding the features that write refusal (actuators) and those that read harm (sensors)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from demur.activations.harvest import read
from demur.config import Settings
from demur.data.prompts import shipped_prompts
from demur.data.refusals import refusals
from demur.errors import SAEError, SettingsError
from demur.features.contrast import read_replies, separation
from demur.features.effect import Bench, Conversation, answers, refusal_log_odds, try_policies
from demur.features.evidence import evidence
from demur.features.held_out import pairs
from demur.features.optimise import optimise, rehearse
from demur.features.sensing import Sensed, sense
from demur.models.chat import tokens_and_roles
from demur.records import Feature, FeatureSet, Pooling, Positions, Prompt, PromptSet, evenly
from demur.steering.policies import NONE

BEGINNING = 6
"""First tokens of a refusal by which it is known; what follows is hardly about refusing."""
_ABOUT_SENSORS = (
    "Sensors: what is left of a logistic model of harmful against benign training prompts when it may keep {} features, "
    "and an attention probe of the stream beside them where the set has one."
)
PAPER_DOSE = 0.4
"""The value to which the paper's candidates are clamped, as a share of the residual stream's norm."""
BRIEF = 120
"""Characters of a prompt that is shown as a feature's context; a longer one would only be cut."""
ENOUGH_OWN = 16
"""Refusals of the model's own that are enough to tell what is regular in refusals from what is not."""


class FindSettings(Settings):
    """How features are found, and on how many prompts."""

    method: Literal["effect", "contrast", "paper"] = "effect"
    """effect: a set of features that together make the model refuse, by gradient descent; contrast: more active in
    refusing than in compliant replies, ranked one by one; paper: active in refusals, ranked by refusals won when
    clamped everywhere (O'Brien et al., 2411.11296). Sensors come with effect and contrast."""
    openings: tuple[str, ...] = (
        "I'm sorry, but I can't help with that.",
        "I'm unable to assist with that request.",
        "I'm unable to provide you with the requested information.",
        "I'm sorry, but I can't assist with that.",
        "I'm sorry, I'm not able to help you with that.",
    )
    """First sentences by which a refusal is known: `effect` makes them likely, `paper` and `contrast` score by them.
    Best are a few that the model would use: pulled towards many words at once, it says none of them fluently."""
    actuators: int = Field(default=14, gt=0)
    """Most features that `effect` raises together."""
    rehearsed: int = Field(default=320, gt=0)
    """Harmful training prompts on which `effect` fits its features, as many of each source as there are."""
    replies: int = Field(default=64, gt=1)
    """Harmful training prompts whose replies are contrasted."""
    scored: int = Field(default=6, gt=0)
    """Harmful validation prompts on which the odds of a refusal are measured."""
    tried: int = Field(default=24, gt=0)
    """Harmful, and as many benign, validation prompts on which each feature of the shortlist is tried by generating."""
    candidates: int = Field(default=80, gt=0)
    """Features whose odds of a refusal are measured."""
    shortlist: int = Field(default=12, gt=0)
    """Features tried by generating."""
    full: bool = False
    """Try all candidates by generating, not only the shortlist; for a GPU."""
    sensors: int = Field(default=64, gt=0)
    """Most features that read harm."""
    per_source: int = Field(default=1500, gt=0)
    """Most training prompts of each source, label and kind that the sensors are fitted to."""
    pooling: Pooling = "max"
    """How a sensor's activations on a prompt become one."""
    attention: bool = True
    """Also read harm by an attention probe of the stream, which tells harm from its look-alikes better than features do."""
    held_out: bool = False
    """Also fit the sensors, and a dense probe beside them, without two sources at a time, and measure them there."""
    seed: int = 0
    """Order of the refusals that we wrote."""


@dataclass(frozen=True)
class Replies:
    """Harmful prompts with what the plain model answers and how it would refuse, as token ids."""

    conversations: Sequence[Conversation]
    plain: list[list[int]]
    refused: list[bool]
    """Whether the plain model refused by itself."""
    ours: list[list[int]]
    """Refusals that we wrote, one for each prompt."""


@dataclass(frozen=True)
class Candidates:
    """Features that may write refusal, before any was tried."""

    scores: dict[int, float]
    """What made each a candidate, best first."""
    levels: dict[int, float]
    """Usual maximum in refusals, in the SAE's units."""
    positions: Positions
    how: str


def find(bench: Bench, train: PromptSet, validation: PromptSet, settings: FindSettings, sae_name: str) -> FeatureSet:
    """Features in order of rank, with scores and evidence; candidates from training, effects from validation prompts.

    Raises:
        PromptError: a set without harmful or without benign prompts, or without two sources of each to leave out.
        SettingsError: sensors are to be measured, and the method finds none.
        SAEError: no feature, nor any set of them, makes the model refuse (effect).
    """
    if settings.held_out:
        if settings.method == "paper":
            raise SettingsError("--held-out measures sensors, and the method paper finds none; give another --method.")
        pairs([(row.label == "harmful", row.source or train.name) for row in train.rows])
    harmful = train.where(label="harmful")
    replies = both_replies(bench, spread(harmful, settings.replies), settings.seed)
    if settings.method == "effect":
        candidates = _effect(bench, replies, spread(harmful, settings.rehearsed), settings)
        actuators = [
            Feature(id=f, role="actuator", level=level, scores={"candidate": candidates.scores[f]})
            for f, level in candidates.levels.items()
        ]
    else:
        candidates = (_paper if settings.method == "paper" else _contrast)(bench, replies, settings)
        actuators = _rank_by_effect(bench, candidates, validation, settings)
    sensed = Sensed([]) if settings.method == "paper" else _sensed(bench, train, settings)
    found = FeatureSet(
        model=bench.lm.name,
        model_hash=bench.lm.hash,
        sae=sae_name,
        sae_hash=bench.sae.hash,
        site=bench.sae.config.site,
        method=settings.method,
        how=candidates.how,
        pooling=settings.pooling,
        bias=sensed.bias,
        features=with_evidence(bench, [*actuators, *sensed.features], settings.seed),
        held_out=sensed.held_out,
        sensor=sensed.sensor,
    )
    return found.holding(sensed.arrays) if sensed.arrays else found


def with_evidence(bench: Bench, features: Sequence[Feature], seed: int) -> tuple[Feature, ...]:
    """The features with what a person reads to judge them."""
    # Contexts are printed and shipped, so they come from texts that we wrote: our prompts, our refusals.
    ours = shipped_prompts("train")
    ours = ours.model_copy(update={"rows": tuple(r for r in ours.rows if len(r.prompt or "") <= BRIEF)})
    ordinary = [row.conversation for row in ours.where(label="benign").sample(200).rows]
    texts = [tokens_and_roles(bench.lm, c)[0] for c in ordinary]
    for row, refusal in zip(ours.where(label="harmful").sample(64).rows, refusals(seed), strict=False):
        texts.append(
            tokens_and_roles(bench.lm, row.conversation)[0]
            + bench.lm.tokenizer(refusal, add_special_tokens=False)["input_ids"]
        )
    shown = evidence(bench, {f.id: f.level for f in features}, texts, ordinary[:8])
    return tuple(f.model_copy(update={"evidence": shown[f.id]}) for f in features)


def both_replies(bench: Bench, prompts: Sequence[Prompt], seed: int) -> Replies:
    """What the plain model answers to harmful prompts, and refusals that we wrote in its place."""
    plain = answers(bench, [(NONE, p) for p in prompts], max_new_tokens=48, what="answering harmful prompts")
    tokens = [
        bench.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in [*(a.text or " " for a in plain), *itertools.islice(refusals(seed), len(prompts))]
    ]
    return Replies(
        conversations=[p.conversation for p in prompts],
        plain=tokens[: len(prompts)],
        refused=[a.outcome == "refused" for a in plain],
        ours=tokens[len(prompts) :],
    )


def _effect(bench: Bench, replies: Replies, prompts: Sequence[Prompt], settings: FindSettings) -> Candidates:
    norm = usual_norm(bench, replies.conversations)
    chosen = optimise(bench, prompts, _sentences(bench, settings.openings), settings.actuators, norm, settings.seed)
    chosen = rehearse(bench, prompts, chosen, norm, settings.seed)
    if not chosen:
        raise SAEError(
            "raising no feature of the SAE makes the model refuse: descent let go of all of them; train the SAE on text "
            "with refusals in the chat template, or name --openings that the model itself would use."
        )
    return Candidates(
        scores={f: value / sum(chosen.values()) for f, value in chosen.items()},
        levels=chosen,
        positions="reply",
        how=(
            f"Actuators: {len(chosen)} features that together make {len(settings.openings)} first sentences of "
            "refusals likely, by gradient descent through the model; amounts fitted again "
            f"to what the model says when it is free. {len(prompts)} harmful training prompts. "
            f"{_ABOUT_SENSORS.format(settings.sensors)}"
        ),
    )


def _sentences(bench: Bench, openings: Sequence[str]) -> list[list[int]]:
    return [bench.lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in openings]


def beginnings(bench: Bench, openings: Sequence[str]) -> list[list[int]]:
    """The first tokens of each opening, by which a refusal is known; none twice."""
    return [list(b) for b in dict.fromkeys(tuple(said[:BEGINNING]) for said in _sentences(bench, openings))]


def usual_norm(bench: Bench, conversations: Sequence[Conversation]) -> float:
    """The residual stream's usual norm at the last prompt token, which writes the first word of the reply."""
    last = []
    for conversation in conversations[:16]:
        ids = torch.tensor([tokens_and_roles(bench.lm, conversation)[0]], device=bench.lm.device)
        last.append(read(bench.lm, [bench.sae.config.site], ids)[bench.sae.config.site][0, -1].norm())
    return float(torch.stack(last).median())


def _paper(bench: Bench, replies: Replies, settings: FindSettings) -> Candidates:
    own = [i for i, refused in enumerate(replies.refused) if refused]
    if len(own) >= ENOUGH_OWN:
        which, tokens, source = own, replies.plain, f"{len(own)} refusals of the model's own"
    else:
        which, tokens = list(range(len(replies.ours))), replies.ours
        source = (
            f"{len(which)} refusals that we wrote, teacher-forced: of {len(which)} harmful prompts the model refused "
            f"{len(own)} by itself"
        )
    found = read_replies(bench.lm, bench.sae, [replies.conversations[i] for i in which], [tokens[i] for i in which])
    order = found.twice.argsort(descending=True, stable=True)[: settings.candidates].tolist()
    # As in the paper, every candidate is clamped to one value; ours is stated as a share of the residual norm.
    value = PAPER_DOSE * usual_norm(bench, replies.conversations)
    return Candidates(
        scores={f: float(found.twice[f]) for f in order if found.twice[f] > 0},
        levels=dict.fromkeys(order, value),
        positions="all",
        how=(
            f"Features active on at least two tokens of refusals ({source}), the most regular first; ranked by harmful "
            f"validation prompts refused when each is clamped to {value:.0f} at all positions (O'Brien et al., 2024)."
        ),
    )


def _contrast(bench: Bench, replies: Replies, settings: FindSettings) -> Candidates:
    complying = [i for i, refused in enumerate(replies.refused) if not refused]
    refusing = read_replies(bench.lm, bench.sae, replies.conversations, replies.ours)
    ordinary = read_replies(
        bench.lm, bench.sae, [replies.conversations[i] for i in complying], [replies.plain[i] for i in complying]
    )
    d = separation(refusing, ordinary)
    order = d.argsort(descending=True, stable=True)[: settings.candidates].tolist()
    return Candidates(
        scores={f: float(d[f]) for f in order if d[f] > 0},
        levels={f: float(refusing.level[f]) for f in order},
        positions="reply",
        how=(
            f"Actuators: more active in {len(replies.ours)} teacher-forced refusals that we wrote than in "
            f"{len(complying)} compliant replies of the model to the same prompts; ranked by harmful validation "
            "prompts refused when clamped to their usual maximum on the reply, less half the benign ones refused. "
            + _ABOUT_SENSORS.format(settings.sensors)
        ),
    )


def _rank_by_effect(
    bench: Bench, candidates: Candidates, validation: PromptSet, settings: FindSettings
) -> list[Feature]:
    policies = {f: bench.raising({f: candidates.levels[f]}, candidates.positions) for f in candidates.scores}
    harmful, benign = validation.where(label="harmful"), validation.where(label="benign")
    scored = [row.conversation for row in harmful.sample(settings.scored).rows]
    plain, *odds = refusal_log_odds(bench, [NONE, *policies.values()], scored, beginnings(bench, settings.openings))
    gains = dict(zip(policies, (o - plain for o in odds), strict=True))
    short = sorted(gains, key=lambda f: -gains[f])[: None if settings.full else settings.shortlist]
    tried = try_policies(
        bench,
        [policies[f] for f in short],
        harmful.sample(settings.tried).rows,
        benign.sample(settings.tried).rows,
    )
    # The paper looked at unsafe prompts alone; a feature that leaves harmless ones alone is worth more to us.
    price = 0.0 if settings.method == "paper" else 0.5
    ranked = sorted(
        zip(short, tried, strict=True), key=lambda pair: -(pair[1].refused - price * pair[1].benign_refused)
    )
    return [
        Feature(
            id=f,
            role="actuator",
            level=candidates.levels[f],
            scores={
                "candidate": candidates.scores[f],
                "log_odds_gain": gains[f],
                "harmful_refused": t.refused,
                "benign_refused": t.benign_refused,
                "degenerate": t.degenerate,
            },
        )
        for f, t in ranked
    ]


def _sensed(bench: Bench, train: PromptSet, settings: FindSettings) -> Sensed:
    rows = [row for group in by_source(train).values() for row in evenly(group, settings.per_source)]
    return sense(
        bench,
        rows,
        [row.source or train.name for row in rows],
        settings.sensors,
        settings.pooling,
        settings.attention,
        settings.held_out,
        settings.seed,
    )


def by_source(prompts: PromptSet) -> dict[tuple[str, str, str], list[Prompt]]:
    """Rows by source, label and kind."""
    groups: dict[tuple[str, str, str], list[Prompt]] = {}
    for row in prompts.rows:
        groups.setdefault((row.source or prompts.name, row.label, row.kind or ""), []).append(row)
    return groups


def spread(prompts: PromptSet, count: int) -> list[Prompt]:
    """At most `count` rows, as evenly over the sources as they allow."""
    # One that has thousands of rows would be all there is to learn from.
    groups = sorted(by_source(prompts).values(), key=len)
    rows: list[Prompt] = []
    for i, group in enumerate(groups):
        rows += evenly(group, (count - len(rows)) // (len(groups) - i))
    return rows
