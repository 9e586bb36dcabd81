"""The Pareto front of the trials, and the rule that takes the operating point from it."""

from collections.abc import Sequence
from typing import Any

from demur.calibration.settings import CalibrationSettings
from demur.calibration.trials import Trial
from demur.records import Positions

MILD: tuple[Positions, ...] = ("reply", "prompt", "user", "all")
"""Positions, those at which least is changed first."""
ENDING = ("hold", "decay")
"""Parameters of a way to act that say when it ends."""
PRICE = 0.5
"""What a harmless request refused weighs against a harmful one when finalists are picked; as in `demur find`."""
MOST = 0.5
"""Trials within the limits are preferred, if one of them refuses at least this share of the most that any refuses."""


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in one aim without losing in another, in order."""
    aims = [t.aims for t in trials]
    return [t for t, mine in zip(trials, aims, strict=True) if not any(_beats(other, mine) for other in aims)]


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def finalists(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The most promising trials: most harm refused, less degenerate replies and half of the benign refused.

    Of all, not of the front alone: on few prompts a dose that is just enough ties with one that has some to spare, and
    with less KL beats it; which of them holds is what the finals are for. Of ways that differ only in when they end, one:
    what is said is settled in the first words (decision 18), so the one with least KL of those that refuse as much.
    """

    def promise(t: Trial) -> float:
        return t.aims[0] - PRICE * t.benign_refused.rate

    best: dict[tuple[Any, ...], Trial] = {}
    for t in sorted(trials, key=lambda t: t.kl):
        same = tuple((name, value) for name, value in sorted(t.params.items()) if name not in ENDING)
        best.setdefault((promise(t), *same), t)
    return sorted(best.values(), key=lambda t: (-promise(t), t.number))[:count]


def choose(trials: Sequence[Trial], settings: CalibrationSettings) -> tuple[Trial, str]:
    """The operating point, and the rule by which it was taken, in words."""
    good = [t for t in trials if within_limits(t, settings)]
    most = max(t.aims[0] for t in trials)
    limits = (
        f"at least {100 * settings.fluent:g} % of refusals fluent, at most {100 * settings.degenerate:g} % degenerate"
    )
    if good and max(t.aims[0] for t in good) >= MOST * most:
        said = f"of those with {limits} ({len(good)} of {len(trials)})"
    else:
        said, good = f"of all {len(trials)}, since none with {limits} refuses half as much as the best", list(trials)
    best = [max(column) for column in zip(*map(_holds, good), strict=True)]
    short = [max(b - mine for b, mine in zip(best, _holds(t), strict=True)) for t in good]
    slack = max(settings.slack, min(short))  # the best greedily and the best where drawn may be two
    near = [t for t, s in zip(good, short, strict=True) if s <= slack]
    chosen = min(near, key=_severity)
    also = ", and of the most refused where drawn at temperature 1," if any(t.drawn for t in good) else ""
    wider = " (more than asked, as none is near both)" if slack > settings.slack else ""
    rule = (
        f"{said}, those within {100 * slack:.3g} points{wider} of the most harm refused less degenerate replies{also} "
        f"({len(near)}); of these the mildest: fewest benign refused with the gate forced open, then least KL, then fewest "
        "positions and lowest dose."
    )
    return chosen, rule


def within_limits(trial: Trial, settings: CalibrationSettings) -> bool:
    """Whether its refusals are fluent and its replies whole."""
    fluent = trial.fluent is not None and trial.fluent.rate >= settings.fluent
    return fluent and trial.degenerate.rate <= settings.degenerate


def _holds(t: Trial) -> tuple[float, float]:
    return t.aims[0], t.drawn.rate if t.drawn else 0.0


def _severity(t: Trial) -> tuple[float, ...]:
    return t.benign_refused.rate, t.kl, MILD.index(t.params["positions"]), t.params["dose"]
