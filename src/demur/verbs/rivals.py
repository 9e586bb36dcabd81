"""`demur rivals`: other methods, controls and the paper's arms as policies, fitted to the data that we use."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from demur import runs
from demur.data.prompts import load_prompts
from demur.features.effect import Bench
from demur.models.load import ModelSettings
from demur.progress import say
from demur.rivals.build import RIVALS, RivalSettings, Workshop, check_bases, check_names
from demur.steering.policies import find_policy, shipped
from demur.verbs.output import DEFAULT_MODEL, show

DEFAULTS = RivalSettings()


def rivals_verb(
    *,
    only: Annotated[list[str], Parameter(negative="")] = [],  # noqa: B006 - never changed
    gated: str = "gated",
    paper: str = "paper",
    sae: Path | None = None,
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    settings: Annotated[RivalSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Make the policies that ours is compared with: prompt, canned, diffmean, refusal-direction, cast, alphasteer, …

    Directions are fitted on training prompts; layer, dose and positions are chosen on validation prompts, by one rule
    for all. A run that was stopped goes on with the rivals that it has not made yet.

    Examples
    --------
    demur rivals -c configs/smollm2-policies.toml --run runs/rivals
    demur rivals --only cast --only alphasteer

    Parameters
    ----------
    only
        Make only these; may be repeated.
    gated
        The gated policy whose gate `canned` shares.
    paper
        The paper's policy, from which the other arms (reconstruction, splice, random-direction) and the control unrelated
        are made.
    sae
        Folder of the SAE of those two, where it is not the shipped one.
    prompts
        Training prompts, harmful and benign; by default the shipped ones.
    validation
        Prompts on which the strength is chosen; by default the shipped ones.
    run
        Folder of the run; the policies are written there.
    json
        Print one JSON object, and nothing else.
    """
    check_names(only)
    ours, theirs = find_policy(gated), find_policy(paper)
    check_bases(ours, theirs)
    train, held = load_prompts(prompts, "train"), load_prompts(validation, "validation")
    bench = Bench.open(sae or shipped() / "sae", model)
    stated = {
        "bases": {p.name: p.hash for p in (ours, theirs)},
        "prompts": f"{train.name} {runs.rows_hash(train.rows)}",
        "validation": f"{held.name} {runs.rows_hash(held.rows)}",
        "model": model.model_dump(mode="json") | {"hash": bench.lm.hash},
        **settings.model_dump(mode="json"),
    }
    folder = runs.open_run("rivals", run, stated)
    say(f"run: {folder}")
    shop = Workshop(bench, train, held, settings, ours, theirs)
    made = {}
    for name in only or RIVALS:
        path = folder / f"{name}.toml"
        if not path.is_file():
            RIVALS[name](shop).save(path)
        made[name] = find_policy(str(path))
    runs.note(folder, policies={name: p.hash for name, p in made.items()})
    lines = [f"{name}: {p.about} {p.receipt.get('option', '')}".rstrip() for name, p in made.items()]
    flags = " ".join(f"--policy {folder / name}.toml" for name in made)
    show(
        {"run": str(folder), "policies": [p.model_dump(mode="json") for p in made.values()]},
        json,
        "\n".join(lines) + f"\nwrote {folder}\nnext: demur evaluate --policy none --policy gated {flags}",
    )
