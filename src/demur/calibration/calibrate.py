"""From features to policies at one frozen operating point, chosen on validation prompts alone.

Scores are read once, levels and the gate on the reply are arithmetic on them; then ways to act are tried behind the gate.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from demur.calibration.front import choose, finalists, pareto_front
from demur.calibration.late import LateReport, set_late
from demur.calibration.levels import Setting, set_levels
from demur.calibration.scores import Score, read_scores
from demur.calibration.search import around, confirm, search
from demur.calibration.settings import CalibrationSettings
from demur.calibration.strata import harmful_by_source, strata, with_a_chat_stratum, with_a_wrapped_stratum
from demur.calibration.trials import NATS, Ground, Trial, fluency_limit, plain_replies
from demur.errors import PolicyError
from demur.features.effect import Bench
from demur.features.reading import read_prompts
from demur.features.signals import fits
from demur.records import Feature, FeatureSet, Gate, LevelName, Policy, PromptSet, Record, evenly_of
from demur.steering.session import check

COMPARED = 8
"""Plain replies to benign prompts on which KL is measured."""


class Front(Record):
    """What the search found."""

    trials: tuple[Trial, ...]
    """All of them."""
    front: tuple[int, ...]
    """Numbers of those that no other beats."""
    confirmed: tuple[Trial, ...]
    """The finalists, measured again on more prompts."""
    chosen: int
    rule: str
    prompts: str
    """What they were tried on."""


@dataclass(frozen=True)
class Calibrated:
    """Policies, and how they were chosen."""

    policies: list[Policy]
    front: Front
    levels: dict[LevelName, Setting]
    """Empty without a gate."""
    late: LateReport | None


def calibrate(
    bench: Bench, features: FeatureSet, validation: PromptSet, settings: CalibrationSettings, folder: Path | None = None
) -> Calibrated:
    """From the paper's features the policy `paper`; from others `gated` with its levels, and the control `random`.

    What is read, said and tried is kept in `folder`, and not done again where it is there.

    Raises:
        PolicyError: the features were found on another model or SAE, or there are none to act or to read with.
        PromptError: validation prompts without harmful or benign rows.
        SettingsError: a budget for a level or stratum that is not there; Optuna is not installed.
    """
    if features.model_hash != bench.lm.hash or features.sae_hash != bench.sae.hash:
        raise PolicyError(
            f"the features were found on {features.model} ({features.model_hash}) with SAE {features.sae_hash}, not on "
            f"{bench.lm.name} ({bench.lm.hash}) with SAE {bench.sae.hash}; find them again."
        )
    if not features.actuators():
        raise PolicyError("the feature set has no actuators; find features again with more --candidates.")
    # Said before anything is read.
    settings.check(strata(validation))
    harmful_by_source(validation)
    if features.method == "paper":
        return _paper(bench, features, validation, settings, folder)
    holds = partial(fits, bench.lm)
    validation = with_a_wrapped_stratum(validation, settings.wrapped, holds)
    validation = with_a_chat_stratum(validation, settings.turns, settings.chats, holds)
    base = base_policy(bench, features)
    _check(bench, base, features, settings)
    scores = read_scores(bench.lm, bench.saes, base, validation.rows, folder, bench.batch)
    levels = set_levels(scores, validation, settings)
    line = levels[settings.level].level.threshold
    gate, held, late = gate_of(features, line), None, None
    if features.continuation is not None:
        shut = {row.id for row, s in zip(validation.rows, scores, strict=True) if s.score < line}
        held, late = set_late(bench, base, features.continuation, validation, shut, settings, folder)
    ranked = features.method != "effect"
    actuators = features.actuators()[: settings.most_features] if ranked else features.actuators()
    acting = base.model_copy(update={"gate": gate})
    ground = _ground(bench, acting, actuators, validation, scores, settings, folder)
    plan = around(actuators, settings.positions, settings, gated=True, ranked=ranked)
    front = _searched(ground, search(ground, plan, settings, folder), validation, scores, line)
    gate = gate.model_copy(update={"continuation": held})
    ours = _written(ground, front, gate, levels, late, features)
    return Calibrated([ours, _control(bench, ours, features, validation, settings)], front, levels, late)


def _check(bench: Bench, base: Policy, features: FeatureSet, settings: CalibrationSettings) -> None:
    # Whether the sensors can stand before the edits, and everything fits the model and the SAEs.
    first = features.actuators()[0]
    act = bench.raising({first.id: first.level}, settings.positions[0]).interventions
    gate = gate_of(features).model_copy(update={"continuation": features.continuation})
    check(base.model_copy(update={"gate": gate, "interventions": act}), bench.lm, bench.saes)


def gate_of(features: FeatureSet, threshold: float = 0.0) -> Gate:
    """The sensors of features as a gate on the prompt.

    It reads the last turn by itself too, as they were fitted: a request drowns in a long history.
    """
    return Gate(sensor=features.reading(), kinds=features.kinds, threshold=threshold, turns="either")


def base_policy(bench: Bench, features: FeatureSet) -> Policy:
    """Model, SAEs, vectors and sensors of features, as a policy that does nothing yet; its threshold means nothing.

    Raises:
        PolicyError: no sensors.
    """
    policy = Policy(
        name="trial",
        model=bench.lm.name,
        model_hash=bench.lm.hash,
        saes={site: bench.saes[site].hash for site in features.read_at},
        gate=gate_of(features),
    )
    return policy.holding(features.arrays) if features.arrays else policy


def _paper(
    bench: Bench, features: FeatureSet, validation: PromptSet, settings: CalibrationSettings, folder: Path | None
) -> Calibrated:
    base = Policy(
        name="trial", model=bench.lm.name, model_hash=bench.lm.hash, saes={bench.sae.config.site: bench.sae.hash}
    )
    settings = settings.model_copy(update={"operation": "clamp"})  # as published
    actuators = features.actuators()[:1]
    ground = _ground(bench, base, actuators, validation, None, settings, folder)
    plan = around(actuators, ("all",), settings, gated=False, ranked=True)
    trials = search(ground, plan, settings.model_copy(update={"trials": len(plan.starts)}), folder)
    front = _searched(ground, trials, validation, None, 0.0)
    chosen = next(t for t in front.confirmed if t.number == front.chosen)
    about = "One refusal feature clamped at all positions, always (O'Brien et al., 2411.11296)."
    receipt = {"how": features.how, "search": _in_short(front)}
    policy = ground.policy(chosen.params, "paper").model_copy(update={"about": about, "receipt": receipt})
    return Calibrated([policy], front, {}, None)


def _ground(
    bench: Bench,
    base: Policy,
    actuators: Sequence[Feature],
    validation: PromptSet,
    scores: Sequence[Score] | None,
    settings: CalibrationSettings,
    folder: Path | None,
) -> Ground:
    line = base.gate.threshold if base.gate else 0.0
    bad = _harmful(validation, scores, line, settings.tried)
    good = _benign(validation, scores, settings.tried_benign)
    harmful, benign = [validation.rows[i] for i in bad], [validation.rows[i] for i in good]
    return Ground(
        bench=bench,
        base=base,
        actuators=tuple(actuators),
        harmful=harmful,
        benign=benign,
        lowest=min(scores[i].score for i in good) if scores else 0.0,
        spread=max(1e-6, median(scores[i].score - line for i in bad)) if scores else 0.0,
        passages=plain_replies(bench, benign[:COMPARED], settings.max_new_tokens),
        limit=fluency_limit(bench.lm, harmful, settings.seed, folder / NATS if folder else None),
        folder=folder,
        settings=settings,
    )


def _harmful(validation: PromptSet, scores: Sequence[Score] | None, line: float, count: int) -> list[int]:
    # Of every source alike, those that open the gate; where none does, those that come nearest.
    sources = list(harmful_by_source(validation).values())
    if scores is None:
        return evenly_of(sources, count)
    opening = [[i for i in rows if scores[i].score >= line] for rows in sources]
    if not any(opening):
        opening = [sorted((i for rows in sources for i in rows), key=lambda i: -scores[i].score)[:count]]
    return evenly_of([rows for rows in opening if rows], count)


def _benign(validation: PromptSet, scores: Sequence[Score] | None, count: int) -> list[int]:
    # Those that are nearest to opening the gate, or do: where it errs is where acting has a side effect.
    by = list(strata(validation).values())
    if scores is None:
        return evenly_of(by, count)
    return sorted((i for rows in by for i in rows), key=lambda i: -scores[i].score)[:count]


def _searched(
    ground: Ground, trials: list[Trial], validation: PromptSet, scores: Sequence[Score] | None, line: float
) -> Front:
    settings = ground.settings
    front = pareto_front(trials)
    best = finalists(trials, settings.finalists)
    more = round(settings.tried_benign * settings.confirmed / settings.tried)
    bad = [validation.rows[i] for i in _harmful(validation, scores, line, settings.confirmed)]
    numbers = _benign(validation, scores, max(1, more))
    good = [validation.rows[i] for i in numbers]
    if scores:  # these too are to open a soft gate that is forced open
        ground = replace(ground, lowest=min(scores[i].score for i in numbers))
    confirmed = confirm(ground, best, bad, good, settings.drawn)
    chosen, rule = choose(confirmed, settings)
    opening = "that open the gate, " if scores else ""
    nearest = "benign ones nearest to opening it, with the gate forced open" if scores else "benign ones"
    prompts = (
        f"{validation.name} ({validation.hash}): {len(ground.harmful)} harmful prompts {opening}of every source alike, "
        f"and {len(ground.benign)} {nearest}; finalists on {len(bad)} and {len(good)}; KL on the plain model's replies to "
        f"{len(ground.passages)} of these; a refusal is fluent up to {ground.limit:.2f} nats a token, which 95 % of "
        f"refusals that we wrote keep to; {settings.max_new_tokens} new tokens."
    )
    return Front(
        trials=tuple(trials),
        front=tuple(t.number for t in front),
        confirmed=tuple(confirmed),
        chosen=chosen.number,
        rule=rule,
        prompts=prompts,
    )


def _written(
    ground: Ground,
    front: Front,
    gate: Gate,
    levels: dict[LevelName, Setting],
    late: LateReport | None,
    features: FeatureSet,
) -> Policy:
    name = ground.settings.level
    chosen = next(t for t in front.confirmed if t.number == front.chosen)
    policy = ground.policy(chosen.params, "gated")
    soft = policy.gate.soft if policy.gate else 0.0
    raised = ground.raised(chosen.params)
    if (dose := levels[name].level.dose) != 1:
        policy = policy.at_dose(dose).model_copy(update={"name": "gated"})
    # A level's dose is relative to what stands in the file, which is the dose of the level in force.
    at = {n: s.level.model_copy(update={"dose": s.level.dose / dose}) for n, s in levels.items()}
    receipt: dict[str, Any] = {
        "how": features.how,
        "level": name,
        "gate": _strata(levels[name]),
        "levels": {n: _receipt(s) for n, s in levels.items()},
        "search": _in_short(front),
    }
    if late is not None:
        receipt["late"] = late.model_dump(mode="json", exclude_none=True) | {"said": str(late.promise)}
    act = policy.interventions[0]
    about = f"{len(raised)} refusal features raised ({act.positions}) when what reads harm says so."
    return policy.model_copy(
        update={
            "about": about,
            "gate": gate.model_copy(update={"soft": soft}),
            "levels": at,
            "receipt": receipt,
        }
    )


def _strata(setting: Setting) -> dict[str, Any]:
    rows = {s: {"budget": p.budget, "alone": p.threshold} for s, p in setting.promises.items()}
    return {s: row | setting.opened[s].model_dump() for s, row in rows.items()} | {
        "harmful": setting.harmful.model_dump()
    }


def _receipt(setting: Setting) -> dict[str, Any]:
    body = setting.model_dump(mode="json", exclude_none=True, exclude={"level"})
    return {"threshold": setting.level.threshold, "said": {s: str(p) for s, p in setting.promises.items()}} | body


def _in_short(front: Front) -> dict[str, Any]:
    return {
        "trials": len(front.trials),
        "on_the_front": len(front.front),
        "prompts": front.prompts,
        "rule": front.rule,
        "chosen": front.chosen,
        "finalists": [t.model_dump(mode="json", exclude_none=True) for t in front.confirmed],
    }


def _control(
    bench: Bench, ours: Policy, features: FeatureSet, validation: PromptSet, settings: CalibrationSettings
) -> Policy:
    # Alive features only: raising one that never fires would be no control at all.
    act = ours.interventions[0]
    used = {e.feature for e in act.edits} | {f.id for f in features.features}
    living = [f for f in alive(bench, validation) if f not in used]
    others = random.Random(settings.seed).sample(living, len(act.edits))
    edits = tuple(e.model_copy(update={"feature": f}) for e, f in zip(act.edits, others, strict=True))
    about = "The same gate, random features at equal dose: a control."
    changes = {"interventions": (act.model_copy(update={"edits": edits}),), "receipt": {"seed": settings.seed}}
    return ours.model_copy(update={"name": "random", "about": about} | changes)


def alive(bench: Bench, prompts: PromptSet) -> Sequence[int]:
    """Features that fire on some of the prompts."""
    conversations = [row.conversation for row in prompts.sample(100).rows]
    return (read_prompts(bench.lm, bench.sae, conversations, ["max"])["max"].amax(0) > 0).nonzero()[:, 0].tolist()
