"""`demur find`: SAE + harmful and benign prompts → features that write refusal and read harm."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from demur import runs
from demur.data.chats import chats_for
from demur.data.prompts import load_prompts
from demur.evaluation.endpoint import checked
from demur.features.effect import Bench
from demur.features.find import FindSettings, find, without
from demur.features.naming import names_by_model
from demur.models.load import ModelSettings
from demur.progress import say
from demur.records import Area, FeatureSet, HeldOut
from demur.steering.policies import shipped
from demur.verbs.found import found_tables
from demur.verbs.output import DEFAULT_MODEL, drawn, show

DEFAULTS = FindSettings()


def find_verb(
    *,
    sae: Path | None = None,
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    settings: Annotated[FindSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    keep: Path | None = None,
    namer: str = "",
    namer_model: str = "",
    json: bool = False,
) -> None:
    """Find the features that write refusal (actuators) and those that read harm (sensors).

    Examples
    --------
    demur find --sae runs/sae/sae
    demur find --method paper --sae runs/sae/sae --run runs/paper
    demur find --held-out --prompts harm.jsonl --prompts plain.jsonl
    demur find --keep runs/find/features.json --prompts more-harm.jsonl
    demur find --namer http://localhost:8000/v1 --namer-model NAME

    Parameters
    ----------
    sae
        Folder of the SAE; by default the shipped one.
    prompts
        Training prompts, harmful and benign (JSONL); may be repeated. By default the shipped training prompts.
    validation
        Prompts on which effects are measured; by default the shipped validation prompts.
    run
        Folder of the run. One that was stopped goes on from its last stage.
    keep
        Features (JSON) of the same model and SAE whose actuators are kept: what reads harm is fitted anew, which takes
        half the time.
    namer
        Address of an OpenAI-compatible endpoint (http://HOST/v1) whose model names the features; else a rule does.
    namer_model
        The model's name there.
    json
        Print one JSON object, and nothing else.
    """
    if namer:
        checked(namer, "--namer")
    train, held = load_prompts(prompts, "train"), load_prompts(validation, "validation")
    # A source to leave out, or a file of chats, that is none is said before a run is begun.
    without(train, settings.leave_out)
    chats_for("train", settings.chats)
    kept = FeatureSet.load(keep) if keep else None
    bench = Bench.open(sae or shipped() / "sae", model)
    stated = {
        "sae": bench.sae.hash,
        "prompts": f"{train.name} {runs.rows_hash(train.rows)}",
        "validation": f"{held.name} {runs.rows_hash(held.rows)}",
        "model": model.model_dump(mode="json") | {"hash": bench.lm.hash},
        **settings.model_dump(mode="json"),
    }
    stated |= {"kept": runs.file_hash(keep)} if keep else {}
    folder = runs.open_run("find", run, stated)
    say(f"run: {folder}")
    found = find(bench, train, held, settings, str(sae or "shipped"), folder, kept)
    found.save(folder / "features.json")
    if namer:
        # Written before anybody is asked: whatever becomes of the endpoint, the features are found.
        found = found.renamed(names_by_model(found.features, namer, namer_model))
        found.save(folder / "features.json")
    runs.note(folder, model_hash=bench.lm.hash, features=[f.id for f in found.features])
    show(
        {"run": str(folder), **found.model_dump(mode="json", include={"features", "held_out"})},
        json,
        drawn(features_table(found))
        + "".join(map(drawn, found_tables(found)))
        + "".join(drawn(held_out_table(h)) for h in found.held_out)
        + f"wrote {folder / 'features.json'}\n"
        + f"next: demur calibrate --features {folder / 'features.json'}"
        + (f" --sae {sae}" if sae else ""),
    )


def features_table(found: FeatureSet) -> Table:
    """Features with what speaks for them."""
    table = Table(title=f"{found.method}: {found.model}, {found.site}", title_justify="left", caption=found.how)
    for column in ("feature", "role", "level", "scores", "words it writes", "where it fires"):
        table.add_column(column)
    for f in found.features:
        scores = "  ".join(f"{name} {value:.2f}" for name, value in f.scores.items())
        contexts = "\n".join(c.replace("\n", " ")[-90:] for c in f.evidence.contexts[:2])
        table.add_row(str(f.id), f.role, f"{f.level:.1f}", scores, " ".join(f.evidence.raised[:6]), contexts)
    return table


def held_out_table(held: HeldOut) -> Table:
    """Pairs of sources down; harm told apart where neither was fitted to, and where both were."""
    title = f"{held.reader}: area under the ROC curve, with 95 % intervals"
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("harmful source", "benign source"):
        table.add_column(column)
    for column in ("n", "sources left out", "sources fitted to"):
        table.add_column(column, justify="right")
    for pair in sorted(held.pairs, key=lambda p: p.unseen.area):
        table.add_row(pair.harmful, pair.benign, *_cells(pair.unseen, pair.seen))
    table.add_section()
    table.add_row("mean of pairs", "", *_cells(held.unseen, held.seen))
    if held.not_measured:
        left = ", ".join(f"{h} with {b}" for h, b in held.not_measured)
        table.caption = f"not measured, since one label only would be left to fit to: {left}"
    return table


def _cells(unseen: Area, seen: Area) -> list[str]:
    return [
        f"{unseen.harmful} + {unseen.benign}",
        *(f"{a.area:.3f} [{a.low:.3f}, {a.high:.3f}]" for a in (unseen, seen)),
    ]
