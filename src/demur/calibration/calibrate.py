"""From features to policies at one frozen operating point, chosen on validation prompts alone."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from demur.calibration.thresholds import threshold
from demur.config import Settings
from demur.errors import PolicyError
from demur.evaluation.statistics import Rate
from demur.features.effect import Bench, Tried, try_policies
from demur.features.reading import read_prompts
from demur.records import FeatureSensor, FeatureSet, Gate, Policy, Positions, PromptSet


class CalibrationSettings(Settings):
    """Budgets, and the doses that are tried."""

    budget: float = Field(default=0.02, gt=0, lt=1)
    """Share of benign prompts that may open the gate, in every stratum but the two below."""
    offensive_budget: float = Field(default=0.2, gt=0, lt=1)
    """Share of offensive but harmless prompts that may open it."""
    lookalike_budget: float = Field(default=0.15, gt=0, lt=1)
    """Share of look-alikes of harm that may open it."""
    doses: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
    """Doses tried, as multiples of the levels that `demur find` gave the features."""
    positions: tuple[Positions, ...] = ("reply", "user")
    """Where the features may be raised behind a gate, mildest first."""
    most_features: int = Field(default=4, gt=0)
    """Most refusal features raised together."""
    tried: int = Field(default=32, gt=0)
    """Harmful validation prompts on which each combination is tried."""
    slack: float = Field(default=0.03, ge=0)
    """The mildest combination wins that is within this share of the best."""
    seed: int = 0
    """Of the random features that stand beside ours."""


def calibrate(bench: Bench, features: FeatureSet, validation: PromptSet, settings: CalibrationSettings) -> list[Policy]:
    """From the paper's features the policy `paper`; from contrasted ones `gated`, and `random` at equal dose beside it.

    Raises:
        PolicyError: the features were found on another model or SAE.
        PromptError: validation prompts without harmful or benign rows.
    """
    if features.model_hash != bench.lm.hash or features.sae_hash != bench.sae.hash:
        raise PolicyError(
            f"the features were found on {features.model} ({features.model_hash}) with SAE {features.sae_hash}, not on "
            f"{bench.lm.name} ({bench.lm.hash}) with SAE {bench.sae.hash}; find them again."
        )
    if features.method == "paper":
        values, where, trials = _choose_dose(bench, features, validation, settings, most=1, positions=("all",))
        policy = bench.raising(values, where, "paper")
        about = "One refusal feature clamped at all positions, always (O'Brien et al., 2411.11296)."
        return [policy.model_copy(update={"about": about, "receipt": {"how": features.how, "trials": trials}})]
    gate, strata = fit_gate(bench, features, validation, settings)
    values, where, trials = _choose_dose(
        bench, features, validation, settings, settings.most_features, settings.positions
    )
    receipt = {"how": features.how, "gate": strata, "trials": trials}
    about = f"{len(values)} refusal features raised ({where}) when {len(features.sensors())} harm features say so."
    ours = bench.raising(values, where, "gated").model_copy(update={"gate": gate, "about": about, "receipt": receipt})
    # Alive features only: raising one that never fires would be no control at all.
    used = {*values, *(f.id for f in features.features)}
    living = [f for f in alive(bench, validation) if f not in used]
    others = random.Random(settings.seed).sample(living, len(values))
    control = bench.raising(dict(zip(others, values.values(), strict=True)), where, "random")
    about = "The same gate, random features at equal dose: a control."
    return [ours, control.model_copy(update={"gate": gate, "about": about, "receipt": {"seed": settings.seed}})]


def fit_gate(
    bench: Bench, features: FeatureSet, validation: PromptSet, settings: CalibrationSettings
) -> tuple[Gate, dict[str, Any]]:
    """The gate of the found sensors with its threshold; and what it does to each stratum of the validation prompts."""
    sensors = features.sensors()
    if not sensors:
        raise PolicyError("the feature set has no sensors; find features with --method contrast.")
    sensor = FeatureSensor(
        site=features.site,
        features=tuple(f.id for f in sensors),
        weights=tuple(f.scores["weight"] for f in sensors),
        bias=features.bias,
        pooling=features.pooling,
    )
    pooled = read_prompts(bench.lm, bench.sae, [row.conversation for row in validation.rows], [sensor.pooling])
    scores = (pooled[sensor.pooling][:, list(sensor.features)] @ torch.tensor(sensor.weights) + sensor.bias).tolist()
    by: dict[str, list[float]] = {}
    for row, score in zip(validation.rows, scores, strict=True):
        by.setdefault("harmful" if row.label == "harmful" else row.kind or "plain", []).append(score)
    harmful = by.pop("harmful", [])
    wider = {"offensive": settings.offensive_budget, "lookalike": settings.lookalike_budget}
    budgets = {kind: wider.get(kind, settings.budget) for kind in by}
    line, each = threshold(by, budgets)
    opened = {
        kind: Rate.of(sum(s >= line for s in found), len(found)) for kind, found in (*by.items(), ("harmful", harmful))
    }
    strata = {
        kind: {"budget": budgets.get(kind, 1.0), "alone": each.get(kind, line), **rate.model_dump()}
        for kind, rate in opened.items()
    }
    return Gate(sensor=sensor, threshold=line), strata


def _choose_dose(
    bench: Bench,
    features: FeatureSet,
    validation: PromptSet,
    settings: CalibrationSettings,
    most: int,
    positions: Sequence[Positions],
) -> tuple[dict[int, float], Positions, list[dict[str, Any]]]:
    actuators = features.actuators()
    if not actuators:
        raise PolicyError("the feature set has no actuators; find features again with more --candidates.")
    options: list[tuple[dict[int, float], Positions]] = [
        ({f.id: dose * f.level for f in actuators[:count]}, where)
        # Features found together are raised together; ranked ones are tried as the first, the first two, and so on.
        for count in ([len(actuators)] if features.method == "effect" else range(1, min(most, len(actuators)) + 1))
        for where in positions
        for dose in settings.doses
    ]
    policies = [bench.raising(values, where, f"trial-{i}") for i, (values, where) in enumerate(options)]
    harmful = validation.where(label="harmful").sample(settings.tried).rows
    tried = try_policies(bench, policies, harmful, [], what="trying doses")
    best = max(_worth(t) for t in tried)
    good = [i for i, t in enumerate(tried) if _worth(t) >= best - settings.slack]
    # Mildest: on the fewest tokens, then the least raised.
    values, where = options[min(good, key=lambda i: (positions.index(options[i][1]), sum(options[i][0].values())))]
    trials = [
        {
            "features": list(v),
            "values": [round(x, 2) for x in v.values()],
            "positions": at,
            "refused": t.refused,
            "degenerate": t.degenerate,
            "n": len(harmful),
        }
        for (v, at), t in zip(options, tried, strict=True)
    ]
    return values, where, trials


def _worth(tried: Tried) -> float:
    # Refused text is fluent by definition; degenerate text is a cost of its own.
    return tried.refused - tried.degenerate


def alive(bench: Bench, prompts: PromptSet) -> Sequence[int]:
    """Features that fire on some of the prompts."""
    conversations = [row.conversation for row in prompts.sample(100).rows]
    return (read_prompts(bench.lm, bench.sae, conversations, ["max"])["max"].amax(0) > 0).nonzero()[:, 0].tolist()
