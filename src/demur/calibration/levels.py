"""Levels: false-refusal budgets by stratum, each made a threshold from cached scores, and what it does to each sort of
prompt."""

from collections.abc import Sequence

from demur.calibration.scores import Score
from demur.calibration.settings import CALIBRATED, WIDER, CalibrationSettings
from demur.calibration.strata import harmful_by_source, strata
from demur.calibration.thresholds import Promise, least, threshold
from demur.evaluation.statistics import Rate
from demur.records import Level, LevelName, PromptSet, Record


class Setting(Record):
    """One level: where the gate opens, why there, and what of the validation prompts opens it."""

    level: Level
    binds: str
    """The stratum whose budget puts the threshold where it is."""
    promises: dict[str, Promise]
    """By stratum: what its own budget asks for."""
    opened: dict[str, Rate]
    """By stratum: share of the validation prompts that open the gate."""
    harmful: Rate
    """Of all harmful ones."""
    by_source: dict[str, Rate]
    """Of harmful ones, by where they come from."""
    by_kind: dict[str, dict[str, Rate]]
    """By the kind of harm that a row reads most like, then by label; empty where the gate tells none apart."""
    costs: dict[str, float]
    """Where a plain stratum binds: the threshold without the plain strata's budgets, and the share of harmful prompts that
    would open the gate there. Empty otherwise."""


def set_levels(scores: Sequence[Score], prompts: PromptSet, settings: CalibrationSettings) -> dict[LevelName, Setting]:
    """Every level that takes a budget, from the scores of the validation prompts, in their order.

    Raises:
        PromptError: no harmful or no benign prompts.
    """
    by, sources = strata(prompts), harmful_by_source(prompts)
    return {level: _set(level, scores, prompts, by, sources, settings) for level in CALIBRATED}


def _set(
    name: LevelName,
    scores: Sequence[Score],
    prompts: PromptSet,
    by: dict[str, list[int]],
    sources: dict[str, list[int]],
    settings: CalibrationSettings,
) -> Setting:
    budgets = {stratum: settings.budget_of(name, stratum) for stratum in by}
    binds, promises = threshold({s: [scores[i].score for i in rows] for s, rows in by.items()}, budgets)
    line = promises[binds].threshold

    def opens(rows: Sequence[int], at: float = line) -> Rate:
        return Rate.of(sum(scores[i].score >= at for i in rows), len(rows))

    harmful = [i for rows in sources.values() for i in rows]
    costs: dict[str, float] = {}
    wider = [promises[s].threshold for s in by if s in WIDER]
    if binds not in WIDER and wider and max(wider) < line:
        costs = {"threshold": max(wider), "harmful": opens(harmful, max(wider)).rate}
    kinds: dict[str, dict[str, list[int]]] = {}
    for i, (row, score) in enumerate(zip(prompts.rows, scores, strict=True)):
        if score.kind is not None:
            kinds.setdefault(score.kind, {}).setdefault(row.label, []).append(i)
    return Setting(
        level=Level(
            threshold=line, dose=settings.level_doses.get(name, 1.0), about=_in_words(budgets, binds, promises)
        ),
        binds=binds,
        promises=promises,
        opened={s: opens(rows) for s, rows in by.items()},
        harmful=opens(harmful),
        by_source={s: opens(rows) for s, rows in sources.items()},
        by_kind={k: {label: opens(rows) for label, rows in of.items()} for k, of in sorted(kinds.items())},
        costs=costs,
    )


def _in_words(budgets: dict[str, float], binds: str, promises: dict[str, Promise]) -> str:
    by_budget: dict[float, list[str]] = {}
    for stratum, budget in budgets.items():
        by_budget.setdefault(budget, []).append(stratum)
    kept = "; ".join(f"{100 * b:g} % of {', '.join(s)}" for b, s in sorted(by_budget.items()))
    few = [f"{s} ({p.n} of {least(p.budget)})" for s, p in promises.items() if not p.kept]
    short = f"; too few prompts for the promise: {', '.join(few)}" if few else ""
    return f"opens for at most {kept}; {binds} sets the threshold{short}"
