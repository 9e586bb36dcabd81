"""`demur calibrate`: features + validation prompts + a false-refusal budget → policies."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from demur import runs
from demur.calibration.calibrate import CalibrationSettings, calibrate
from demur.data.prompts import load_prompts
from demur.features.effect import Bench
from demur.models.load import ModelSettings
from demur.records import FeatureSet
from demur.steering.policies import shipped
from demur.verbs.output import DEFAULT_MODEL, say, show

DEFAULTS = CalibrationSettings()


def calibrate_verb(
    *,
    features: Path,
    sae: Path | None = None,
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    settings: Annotated[CalibrationSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Choose threshold, features and dose on validation prompts; write policy files.

    Examples
    --------
    demur calibrate --features runs/find/features.json --budget 0.01
    demur calibrate --features runs/find/features.json --sae runs/sae/sae --lookalike-budget 0.1

    Parameters
    ----------
    features
        What `demur find` wrote.
    sae
        Folder of the SAE; by default the shipped one.
    validation
        Prompts with `kind` (lookalike, offensive, plain, mathematics …); by default the shipped validation prompts.
    run
        Folder of the run; the policies are written there.
    json
        Print one JSON object, and nothing else.
    """
    found = FeatureSet.load(features)
    held = load_prompts(validation, "validation")
    bench = Bench.open(sae or shipped() / "sae", model)
    stated = {"features": runs.file_hash(features), "validation": held.name, **settings.model_dump(mode="json")}
    folder = runs.open_run("calibrate", run, stated)
    say(f"run: {folder}")
    policies = calibrate(bench, found, held, settings)
    for policy in policies:
        policy.save(folder / f"{policy.name}.toml")
    runs.note(folder, policies={p.name: p.hash for p in policies})
    lines = [f"{p.name}: {p.about}" for p in policies]
    if (gate := policies[0].gate) is not None:
        lines.append(f"the gate opens at {gate.threshold:.2f}, on validation prompts:")
        for kind, rate in policies[0].receipt["gate"].items():
            lines.append(
                f"  {kind:12} {100 * rate['rate']:5.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] "
                f"(n = {rate['n']}, budget {100 * rate['budget']:.0f} %)"
            )
    first = folder / f"{policies[0].name}.toml"
    show(
        {"run": str(folder), "policies": [p.model_dump(mode="json") for p in policies]},
        json,
        "\n".join(lines)
        + f"\nwrote {folder}\nnext: demur evaluate --policy none --policy {first}"
        + (f" --sae {sae}" if sae else ""),
    )
