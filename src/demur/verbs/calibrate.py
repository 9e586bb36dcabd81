"""`demur calibrate`: features + validation prompts + false-refusal budgets → policies with levels."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from demur import runs
from demur.calibration.calibrate import Calibrated, calibrate
from demur.calibration.levels import Setting
from demur.calibration.settings import CalibrationSettings
from demur.data.chats import chats_for
from demur.data.prompts import load_prompts
from demur.evaluation.statistics import Rate
from demur.features.effect import Bench
from demur.files import write_json
from demur.models.load import ModelSettings
from demur.progress import say
from demur.records import FeatureSet, LevelName
from demur.reports.front import draw_front, front_rows
from demur.steering.policies import shipped
from demur.verbs.output import DEFAULT_MODEL, drawn, show

DEFAULTS = CalibrationSettings()
FRONT, LEVELS, PLOT = "front.json", "levels.json", "front.svg"


def calibrate_verb(
    *,
    features: Path,
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    settings: Annotated[CalibrationSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    json: bool = False,
) -> Path:
    """Set thresholds by false-refusal budgets, search for how to act, write policies with their levels.

    Every level is a budget for each stratum of benign prompts; thresholds are split-conformal. Then features, doses,
    positions and the dose's course are searched for what refuses most harm, least of what is harmless when the gate errs,
    in fluent words. A run that was stopped goes on with the same --run.

    Examples
    --------
    demur calibrate --features runs/find/features.json
    demur calibrate --features runs/find/features.json --sae runs/sae/sae --budget 0.02 --minutes 30 --trials 500
    demur calibrate --features runs/find/features.json --budgets.standard.lookalike 0.1 --level strict
    demur calibrate -c policies.toml --features runs/find/features.json --run runs/gated

    Parameters
    ----------
    features
        What `demur find` wrote.
    sae
        Folder of the SAE with which they were found, and of others that their sensors read; by default the shipped one.
    validation
        Prompts with `kind` (lookalike, offensive, mathematics, plain …) and, for plain ones, `category` (chat, code,
        fiction, advice); by default the shipped validation prompts.
    run
        Folder of the run; policies, levels.json, front.json and front.svg are written there.
    json
        Print one JSON object, and nothing else.
    """
    found = FeatureSet.load(features)
    held = load_prompts(validation, "validation")
    chats_for("validation", settings.chats)  # a file of chats that is none is said before a run is begun
    bench = Bench.of(found, sae or [shipped() / "sae"], model)
    stated = {
        "features": runs.file_hash(features),
        "validation": f"{held.name} {runs.rows_hash(held.rows)}",
        "model": model.model_dump(mode="json") | {"hash": bench.lm.hash},
        **settings.model_dump(mode="json", exclude={"trials", "minutes"}),
    }
    folder = runs.open_run("calibrate", run, stated)
    say(f"run: {folder}")
    made = calibrate(bench, found, held, settings, folder)
    for policy in made.policies:
        policy.save(folder / f"{policy.name}.toml")
    write_json(folder / FRONT, made.front)
    draw_front(made.front, folder / PLOT)
    if made.levels:
        body = {name: s.model_dump(mode="json", exclude_none=True) for name, s in made.levels.items()}
        late = made.late.model_dump(mode="json", exclude_none=True) if made.late else {}
        write_json(folder / LEVELS, {"levels": body} | ({"late": late} if late else {}))
    runs.note(folder, model_hash=bench.lm.hash, policies={p.name: p.hash for p in made.policies})
    first = folder / f"{made.policies[0].name}.toml"
    show(
        {"run": str(folder), "policies": [p.model_dump(mode="json") for p in made.policies]},
        json,
        told(made)
        + f"wrote {folder}\nnext: demur evaluate --policy none --policy {first}"
        + "".join(f" --sae {path}" for path in sae),
    )
    return folder


def told(made: Calibrated) -> str:
    """What was chosen, and what it does to the validation prompts."""
    lines = [f"{p.name}: {p.about}" for p in made.policies]
    text = "\n".join(lines) + "\n"
    if made.levels:
        text += drawn(levels_table(made.levels))
        for name, s in made.levels.items():
            text += f"{name}: {s.level.about}\n"
            if s.costs:
                text += (
                    f"  without the plain strata it would open at {s.costs['threshold']:.2f}, for "
                    f"{100 * s.costs['harmful']:.1f} % of harmful prompts\n"
                )
    if (late := made.late) is not None:
        text += f"gate on the reply: benign replies {late.benign}; {late.promise}\n"
        caught = f"{late.caught}, by token {late.by_token}" if late.by_token else str(late.caught or "none to catch")
        text += f"  compliant replies to harmful prompts that open it: {caught}\n"
    table = Table(title=f"Finalists of {len(made.front.trials)} trials", title_justify="left", caption_justify="left")
    table.caption = made.front.rule
    for column in ("way to act", "harmful refused", "drawn", "benign refused", "degenerate", "fluent", "nats", "KL"):
        table.add_column(column)
    for row in front_rows(made.front.confirmed, made.front.chosen):
        table.add_row(*row)
    return text + drawn(table)


def levels_table(levels: dict[LevelName, Setting]) -> Table:
    """Strata and sources of harm down, levels across: the share of validation prompts that opens the gate, and budgets."""
    table = Table(title="Opens the gate, validation prompts, 95 % Wilson intervals", title_justify="left")
    table.caption_justify = "left"
    table.caption = "≤: budget; ←: sets the threshold; †: too few prompts for the promise, so above all of them"
    for column in ("prompts", "n", *levels):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    table.add_row("threshold", "", *(f"{s.level.threshold:.2f}" for s in levels.values()))
    first: Setting = next(iter(levels.values()))
    for stratum, rate in first.opened.items():
        table.add_row(stratum, str(rate.n), *(_cell(s.opened[stratum], s, stratum) for s in levels.values()))
    table.add_section()
    for source, rate in {**first.by_source, "all harmful": first.harmful}.items():
        rates = [s.by_source.get(source, s.harmful) for s in levels.values()]
        table.add_row(source, str(rate.n), *map(_share, rates))
    return table


def _cell(rate: Rate, setting: Setting, stratum: str) -> str:
    made = setting.promises[stratum]
    marks = ("" if made.kept else "†") + ("←" if stratum == setting.binds else "")
    return f"{_share(rate)} ≤ {100 * made.budget:g} %{marks}"


def _share(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
