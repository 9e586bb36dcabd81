"""Finding the features that write refusal (actuators) and those that read harm (sensors)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from demur.data.chats import with_chats
from demur.data.prompts import shipped_prompts
from demur.data.refusals import refusals
from demur.data.wrappers import shipped_wrappers, with_wrapped
from demur.errors import PolicyError, SettingsError
from demur.features.contrast import read_replies, separation
from demur.features.effect import Bench, refusal_log_odds, try_policies
from demur.features.evidence import evidence
from demur.features.held_out import pairs
from demur.features.late import Late, read_late
from demur.features.meaning import with_meaning
from demur.features.replies import Replies, beginnings, both_replies, usual_norm
from demur.features.sensing import FEWEST, STREAMS, Sensed, sense
from demur.features.settings import FindSettings
from demur.features.signals import fits
from demur.features.together import find_together
from demur.models.chat import tokens_and_roles
from demur.models.guard import guard_of
from demur.models.load import LanguageModel
from demur.records import Feature, FeatureSet, Positions, Prompt, PromptSet, evenly, evenly_of
from demur.runs import part
from demur.steering.policies import NONE

_ABOUT_SENSORS = (
    "Sensors: what is left of a logistic model of harmful against benign training prompts when it may keep {} features, "
    "and an attention probe of the stream beside them where the set has one."
)
PAPER_DOSE = 0.4
"""The value to which the paper's candidates are clamped, as a share of the residual stream's norm."""
BRIEF = 120
"""Characters of a prompt that is shown as a feature's context; a longer one would only be cut."""
KEPT = ("candidates", "pruned", "interactions", "dormant", "how")
"""What a feature set says of how its actuators were found."""
ENOUGH_OWN = 16
"""Refusals of the model's own that are enough to tell what is regular in refusals from what is not."""


@dataclass(frozen=True)
class Candidates:
    """Features that may write refusal, before any was tried."""

    scores: dict[int, float]
    """What made each a candidate, best first."""
    levels: dict[int, float]
    """Usual maximum in refusals, in the SAE's units."""
    positions: Positions
    how: str


def find(
    bench: Bench,
    train: PromptSet,
    validation: PromptSet,
    settings: FindSettings,
    sae_name: str,
    folder: Path | None = None,
    kept: FeatureSet | None = None,
) -> FeatureSet:
    """Features in order of rank, with scores and evidence; candidates from training, effects from validation prompts.

    With a run's folder, `effect` goes on from the stages that lie there. The actuators of `kept` are taken as they are.

    Raises:
        PolicyError: what is kept was found on another model or SAE, or by another method; a guard that cannot be asked.
        PromptError: a set without harmful or without benign prompts, or without two sources of each to leave out.
        ModelError: the guard that is named cannot be loaded.
        SettingsError: sensors are to be measured, or a guard weighed with them, and the method finds none; a source to leave
            out that no prompt is of.
        SAEError: no feature, nor any set of them, makes the model refuse (effect).
    """
    train = without(train, settings.leave_out)
    if settings.held_out:
        if settings.method == "paper":
            raise SettingsError("--held-out measures sensors, and the method paper finds none; give another --method.")
        pairs([(row.label == "harmful", row.source or train.name) for row in train.rows])
    if settings.guard is not None:
        if settings.method == "paper":
            raise SettingsError(
                "a guard is weighed with sensors, and the method paper finds none; give another --method."
            )
        # One that cannot be asked is found out before the work, not behind it.
        guard_of(settings.guard, bench.lm.device)
    train = _with_others(bench.lm, train, settings)
    if kept is None:
        found: dict[str, Any] = _acting(bench, train, validation, settings, folder)
    else:
        _check_kept(bench, kept, settings)
        found = {name: getattr(kept, name) for name in KEPT} | {"features": kept.actuators()}
    if settings.leave_out:  # said wherever the features go, into a policy's receipt too
        found["how"] += f" Training prompts of {', '.join(settings.leave_out)} were left out."
    sensed = Sensed([]) if settings.method == "paper" else _sensed(bench, train, settings, folder)
    late = None
    if settings.late_replies and settings.method != "paper":
        asked = [
            row for label in ("harmful", "benign") for row in spread(train.where(label=label), settings.late_replies)
        ]
        late = part(folder, "late", Late, lambda: Late(gate=read_late(bench, asked, settings))).gate
    about: dict[str, Any] = {
        "model": bench.lm.name,
        "model_hash": bench.lm.hash,
        "sae": sae_name,
        "sae_hash": bench.sae.hash,
        "site": bench.sae.config.site,
        "method": settings.method,
        "pooling": settings.pooling,
        "bias": sensed.bias,
        "sensor": sensed.sensor,
        "kinds": sensed.kinds,
        "continuation": late,
        "held_out": sensed.held_out,
    }
    features = with_evidence(bench, [*found["features"], *sensed.features], settings.seed)
    features, curve = with_meaning(bench, features, train, validation, settings)
    made = FeatureSet(**about | found | {"features": features, "curve": curve})
    if folder is not None:
        (folder / STREAMS).unlink(missing_ok=True)  # gigabytes, and only of use to a run that was stopped
    return made.holding(sensed.arrays) if sensed.arrays else made


def without(prompts: PromptSet, sources: Sequence[str]) -> PromptSet:
    """The prompts that are of other sources.

    Raises:
        SettingsError: no prompt is of one of them.
        PromptError: all harmful or all benign prompts are.
    """
    if not sources:
        return prompts
    known = sorted({row.source or prompts.name for row in prompts.rows})
    for source in sources:
        if source not in known:
            raise SettingsError(
                f"no training prompt is of the source {source!r} to leave out; there are {', '.join(known)}."
            )
    rows = tuple(row for row in prompts.rows if (row.source or prompts.name) not in sources)
    left = prompts.model_copy(update={"rows": rows})
    for label in ("harmful", "benign"):
        left.where(label=label)
    return left


def _with_others(lm: LanguageModel, train: PromptSet, settings: FindSettings) -> PromptSet:
    # Behind the training prompts the wrapped ones and the conversations that are made of them, where there are enough.
    if len(train.rows) < FEWEST:
        return train
    holds = partial(fits, lm)
    if settings.wrapped:
        train = with_wrapped(train, shipped_wrappers("train"), settings.wrapped, holds)
    if settings.turns:
        train = with_chats(train, "train", settings.chats, settings.turns, holds)
    return train


def _check_kept(bench: Bench, kept: FeatureSet, settings: FindSettings) -> None:
    given = (kept.model_hash, kept.sae_hash, kept.method)
    wanted = (bench.lm.hash, bench.sae.hash, settings.method)
    if given != wanted or not kept.actuators():
        raise PolicyError(
            f"the features to keep were found by {kept.method} on {kept.model} ({kept.model_hash}) with SAE "
            f"{kept.sae_hash}; these would be found by {settings.method} on {bench.lm.name} ({bench.lm.hash}) with SAE "
            f"{bench.sae.hash}. "
            "Give features of the same, or find them without --keep."
        )


def _acting(
    bench: Bench, train: PromptSet, validation: PromptSet, settings: FindSettings, folder: Path | None
) -> dict[str, Any]:
    harmful = train.where(label="harmful")
    replies = part(
        folder, "replies", Replies, lambda: both_replies(bench, spread(harmful, settings.replies), settings.seed)
    )
    if settings.method == "effect":
        return _effect(bench, replies, train, validation, settings, folder)
    candidates = (_paper if settings.method == "paper" else _contrast)(bench, replies, settings)
    return {"features": _rank_by_effect(bench, candidates, validation, settings), "how": candidates.how}


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
    # What a feature writes is read at the level to which it is raised, where it is.
    levels = {f.id: f.level for role in ("sensor", "actuator") for f in features if f.role == role}
    shown = evidence(bench, levels, texts, ordinary[:8])
    return tuple(f.model_copy(update={"evidence": shown[f.id]}) for f in features)


def _effect(
    bench: Bench,
    replies: Replies,
    train: PromptSet,
    validation: PromptSet,
    settings: FindSettings,
    folder: Path | None,
) -> dict[str, Any]:
    harmful = spread(train.where(label="harmful"), settings.rehearsed)
    benign = spread(train.where(label="benign"), settings.ordinary)
    found = find_together(bench, replies, harmful, benign, validation, settings, folder)
    return {
        "features": found.actuators,
        "candidates": found.candidates,
        "pruned": found.pruned,
        "interactions": found.interactions,
        "dormant": found.dormant,
        "how": f"{found.how} {_ABOUT_SENSORS.format(settings.sensors)}",
    }


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


def _sensed(bench: Bench, train: PromptSet, settings: FindSettings, folder: Path | None) -> Sensed:
    rows = [row for group in by_source(train).values() for row in evenly(group, settings.per_source)]
    return sense(bench, rows, [row.source or train.name for row in rows], settings, folder)


def by_source(prompts: PromptSet) -> dict[tuple[str, str, str], list[Prompt]]:
    """Rows by source, label and kind."""
    groups: dict[tuple[str, str, str], list[Prompt]] = {}
    for row in prompts.rows:
        groups.setdefault((row.source or prompts.name, row.label, row.kind or ""), []).append(row)
    return groups


def spread(prompts: PromptSet, count: int) -> list[Prompt]:
    """At most `count` rows, as evenly over the sources as they allow."""
    return evenly_of(by_source(prompts).values(), count)
