"""The search for how to act: several aims at once, in batches, from a file that a kill leaves whole.

Optuna's TPE for several objectives (Ozaki et al., 2022, MOTPE) proposes; what was tried is in `trials.jsonl`. Before each
batch the sampler is made anew from the seed and the trials so far, so that a run that goes on after a kill proposes what
it would have proposed.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from demur.calibration.settings import CalibrationSettings
from demur.calibration.trials import WHOLE, Ground, Params, Range, Space, Trial, measure
from demur.errors import SettingsError
from demur.files import to_line, whole_lines, write_jsonl
from demur.records import Feature, Positions, Prompt, parse

TRIALS, CONFIRMED = "trials.jsonl", "confirmed.jsonl"
ONSETS, HOLDS, DECAYS = (0, 1, 2, 3), (WHOLE, 8, 16, 24, 32), (0, 4, 8)
ENDINGS = {"hold": 16, "decay": 0}, {"hold": 24, "decay": 8}
"""Long enough for a refusal of one sentence, or two; what says no to the last token may go on saying so in circles."""
SOFTS = (0.0, 0.5, 1.0)
"""Score above the threshold at which the dose is whole, as a share of the usual one."""


@dataclass(frozen=True)
class Search:
    """Where to look, and where to begin."""

    space: Space
    starts: Sequence[Params]


def around(
    actuators: Sequence[Feature],
    positions: Sequence[Positions],
    settings: CalibrationSettings,
    gated: bool,
    ranked: bool,
) -> Search:
    """Features in and out, doses between the lowest and the highest, positions, the dose's course over tokens and risk.

    It begins with all features (ranked ones: the first, the first two …) at the dose found, at each of the positions; then
    with all of them at the lower doses, ending after a while (behind a gate), and at the other doses to the end.
    """
    doses = sorted(settings.doses)
    space: dict[str, Range | tuple[Any, ...]] = {"dose": Range(doses[0], doses[-1]), "positions": tuple(positions)}
    if len(actuators) > 1:
        space |= {f"feature {f.id}": (True, False) for f in actuators}
    if gated:
        space |= {"onset": ONSETS, "hold": HOLDS, "decay": DECAYS, "soft": SOFTS}
    usual = min(doses, key=lambda d: abs(d - 1))
    counts = range(1, len(actuators) + 1) if ranked else [len(actuators)]
    points: list[tuple[int, Any, Any, dict[str, int]]]
    points = [(count, at, usual, {}) for count in reversed(counts) for at in positions]
    points += [(len(actuators), positions[0], dose, e) for dose in doses if gated and dose <= usual for e in ENDINGS]
    points += [(len(actuators), positions[0], dose, {}) for dose in doses if dose != usual]
    starts = []
    for count, at, dose, course in points:
        flags = {f"feature {f.id}": i < count for i, f in enumerate(actuators)}
        params = (
            {name: options[0] for name, options in space.items()} | flags | {"dose": dose, "positions": at} | course
        )
        starts.append({name: params[name] for name in space})
    return Search(space, starts)


def most_starts(settings: CalibrationSettings) -> int:
    """Starting points that there are at most for features that were found together; more trials take Optuna."""
    return len(settings.positions) + len(settings.doses) * (1 + len(ENDINGS))


def search(ground: Ground, plan: Search, settings: CalibrationSettings, folder: Path | None) -> list[Trial]:
    """Tries ways to act until there are enough or the time is up; goes on from what the folder has.

    Raises:
        SettingsError: Optuna is needed and not installed.
    """
    path = folder / TRIALS if folder else None
    trials, seconds = _kept(path) if path else ([], 0.0)
    most = settings.trials
    if most > len(plan.starts):
        need_optuna()  # said now, not after the first batches
    while len(trials) < most and not (trials and settings.minutes and seconds >= 60 * settings.minutes):
        begun, count = monotonic(), min(settings.together, most - len(trials))
        ways = [dict(w) for w in plan.starts[len(trials) : len(trials) + count]]
        ways += propose(plan.space, trials, count - len(ways), settings.seed)
        what = f"trying ways to act, {len(trials) + 1} to {len(trials) + count} of {most}"
        made = [t.model_copy(update={"number": len(trials) + t.number}) for t in measure(ground, ways, what)]
        spent = monotonic() - begun
        if path:
            rows = [t.model_dump(mode="json", exclude_none=True) for t in made]
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(to_line(row | {"batch": count, "seconds": spent / count}) for row in rows))
        trials, seconds = [*trials, *made], seconds + spent
    return trials


def confirm(
    ground: Ground, best: Sequence[Trial], harmful: Sequence[Prompt], benign: Sequence[Prompt], drawn: int
) -> list[Trial]:
    """The finalists on more prompts, one by one; those that the folder has already are not tried again.

    Raises:
        FileError, SettingsError: what the folder has cannot be read.
    """
    path = ground.folder / CONFIRMED if ground.folder else None
    known = [parse(Trial, row, path, SettingsError) for row in whole_lines(path)] if path else []
    found = []
    for i, trial in enumerate(best, 1):
        if same := [t for t in known if _is_of(t, trial, len(harmful), len(benign), drawn)]:
            found.append(same[0])
            continue
        what = f"trying finalist {i} of {len(best)} on more prompts"
        (made,) = measure(ground, [trial.params], what, harmful, benign, drawn)
        found.append(made.model_copy(update={"number": trial.number}))
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.write(to_line(found[-1].model_dump(mode="json", exclude_none=True)))
    return found


def _is_of(made: Trial, trial: Trial, harmful: int, benign: int, drawn: int) -> bool:
    asked = (made.refused.n, made.benign_refused.n, made.drawn.n if made.drawn else 0)
    return (made.number, made.params) == (trial.number, trial.params) and asked == (harmful, benign, drawn * harmful)


def propose(space: Space, trials: Sequence[Trial], count: int, seed: int) -> list[dict[str, Any]]:
    """The next ways to try; depends on the trials so far and the seed alone."""
    if count <= 0:
        return []
    optuna = need_optuna()
    distributions: dict[str, Any] = {}
    for name, options in space.items():
        if isinstance(options, Range):
            distributions[name] = optuna.distributions.FloatDistribution(*options)
        else:
            distributions[name] = optuna.distributions.CategoricalDistribution(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=1000 * seed + len(trials), multivariate=True, n_startup_trials=8)
        study = optuna.create_study(directions=["maximize"] * 4, sampler=sampler)
        for t in trials:
            study.add_trial(
                optuna.trial.create_trial(params=t.params, distributions=distributions, values=list(t.aims))
            )
        return [dict(study.ask(distributions).params) for _ in range(count)]


def _kept(path: Path) -> tuple[list[Trial], float]:
    # Of a batch that a kill cut short nothing is kept: what is proposed depends on whole batches.
    rows, whole = whole_lines(path), 0
    while whole < len(rows) and whole + rows[whole]["batch"] <= len(rows):
        whole += rows[whole]["batch"]
    if whole < len(rows):
        write_jsonl(path, rows[:whole])
    seconds = sum(row["seconds"] for row in rows[:whole])
    known = [{k: v for k, v in row.items() if k in Trial.model_fields} for row in rows[:whole]]
    return [parse(Trial, row, path, SettingsError) for row in known], seconds


def need_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SettingsError(
            "more trials than starting points take Optuna, which is not installed; type pip install 'demur[calibrate]', "
            "or give fewer --trials."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
