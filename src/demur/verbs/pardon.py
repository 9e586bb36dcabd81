"""`demur pardon`: upheld appeals + a policy → a policy that answers them."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from demur import runs
from demur.calibration.pardon import PardonSettings, pardon
from demur.data.prompts import load_prompts
from demur.models.load import ModelSettings, load
from demur.progress import say
from demur.records import PromptSet
from demur.steering.policies import find_policy, load_saes
from demur.verbs.output import DEFAULT_MODEL, show

DEFAULTS = PardonSettings()


def pardon_verb(
    appeals: Path,
    *,
    policy: str = "gated",
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    settings: Annotated[PardonSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Keep a policy's gate shut on prompts whose refusal was appealed against with success, and on what is near them.

    Levels, thresholds and what the policy does stay as they are. What it costs is measured on harmful validation prompts
    and printed; rejected appeals in the file are held outside of what is pardoned.

    Examples
    --------
    demur pardon appeals.jsonl --policy gated
    demur pardon appeals.jsonl --policy runs/calibrate/gated.toml --reach 0.5 --run runs/pardon

    Parameters
    ----------
    appeals
        What `demur feedback export` wrote.
    policy
        A policy by name or file.
    sae
        Folder of an SAE that the policy needs, where it is not the shipped one.
    prompts
        Known prompts of both labels, that tell what is usual; by default the shipped training prompts.
    validation
        Prompts whose harmful ones limit the reach; by default the shipped validation prompts.
    run
        Folder of the run; the policy is written there.
    json
        Print one JSON object, and nothing else.
    """
    before, upheld = find_policy(policy), PromptSet.load(appeals)
    usual, held = load_prompts(prompts, "train"), load_prompts(validation, "validation")
    lm = load(model)
    saes = load_saes(lm, [before], sae)
    stated = {
        "appeals": runs.file_hash(appeals),
        "policy": before.hash,
        "prompts": usual.name,
        "validation": held.name,
        **settings.model_dump(mode="json"),
    }
    folder = runs.open_run("pardon", run, stated)
    say(f"run: {folder}")
    made = pardon(lm, saes, before, upheld, usual, held, settings)
    made.save(folder / f"{made.name}.toml")
    told = made.receipt["pardon"]
    runs.note(folder, policies={made.name: made.hash}, pardon=told)
    lines = [f"{len(told['upheld'])} upheld appeals, reach {told['reach']:.2f}; the gate opens on"]
    for name, rates in told["open"].items():
        said = [
            f"{100 * r['rate']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}] {when}" for when, r in rates.items()
        ]
        lines.append(f"  {name:9} {', '.join(said)} (n = {rates['before']['n']})")
    where = folder / f"{made.name}.toml"
    text = "\n".join(lines) + f"\nwrote {where}\nnext: demur serve --policy {where}"
    show({"run": str(folder), "policy": made.hash, "before": before.hash, "pardon": told}, json, text)
