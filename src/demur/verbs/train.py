"""`demur train`: text → SAE."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from demur import runs
from demur.config import locate
from demur.data.corpus import Sequences
from demur.files import write_json
from demur.models.gpus import GPUS, find_gpu
from demur.models.load import LanguageModel, load
from demur.models.shape import shape
from demur.models.sites import Site
from demur.progress import say
from demur.sae.finetune import finetune
from demur.sae.plan import ASSUMED, Estimate, Plan, on, plan
from demur.sae.quality import measure
from demur.sae.ranks import Ranks, joined
from demur.sae.sae import SAE, WEIGHTS
from demur.sae.settings import SAESettings
from demur.sae.train import gather_text, train
from demur.verbs.output import drawn, show

DEFAULTS = SAESettings()


def train_verb(
    *,
    settings: Annotated[SAESettings, Parameter(name="*")] = DEFAULTS,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    gpu: str | None = None,
    gpus: int = 1,
    model_config: Path | None = None,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Train an SAE on text; streams activations from the model, and goes on where it stopped.

    Examples
    --------
    demur train -c configs/smollm2-sae.toml --run runs/sae
    demur train -c configs/smollm2-sae.toml --site 20.resid_post
    demur train -c configs/smollm2-sae.toml --site 10.resid_post --site 14.resid_post
    demur train -c configs/phi3-mini.toml --dry-run --gpu H100
    torchrun --nproc-per-node 8 -m -- demur train -c configs/phi3-mini.toml

    Parameters
    ----------
    dry_run
        Print what training would take - tokens, arithmetic, memory, disk, time on GPUs - and do nothing else.
    gpu
        With --dry-run: the GPU to plan for, by name; by default all that are known.
    gpus
        With --dry-run: how many of them, each with the whole model (torchrun starts a process for each).
    model_config
        With --dry-run: a transformers config.json, for a model whose own is not on this machine.
    run
        Folder of the run; one that exists is resumed.
    json
        Print one JSON object with the SAE's figures (with --dry-run, the plan), and nothing else.
    """
    if dry_run:
        return show_plan(settings, gpu, gpus, model_config, json)
    with joined(settings.device) as ranks:
        folder = Path(
            ranks.told(str(runs.open_run("train", run, settings.model_dump(mode="json"))) if ranks.first else "")
        )
        if ranks.first:
            say(f"run: {folder}")
        lm = load(settings)
        for site in settings.site:
            lm.block(site)
        text, held_out = gather_text(lm, settings, folder, ranks)
        saes = train(lm, text, settings, folder, ranks=ranks)
        if ranks.first:
            measured(lm, saes, text, held_out, settings, folder, ranks, json)


def measured(
    lm: LanguageModel,
    saes: list[SAE],
    text: Sequences,
    held_out: Sequences,
    settings: SAESettings,
    folder: Path,
    ranks: Ranks,
    json: bool,
) -> None:
    """Writes each SAE with its card, and prints what it comes to."""
    cards, lines = [], []
    for trained in saes:
        sae = finetune(lm, trained, text, settings) if settings.finetune_tokens else trained
        where = folder / ("sae" if len(saes) == 1 else f"sae-{Site.parse(sae.config.site).layer}")
        sae.save(where)
        quality = measure(lm, sae, held_out)
        card = {
            "model": lm.name,
            "model_hash": lm.hash,
            "site": sae.config.site,
            "sae_hash": sae.hash,
            "file_hash": runs.file_hash(where / WEIGHTS),
            "command": runs.command(),
            "processes": ranks.size,
            "tokens": int((text.lengths() - 1).sum()),
            "text": [s.model_dump() | {"file_hash": runs.file_hash(locate(s.path))} for s in settings.text],
            "sampled": settings.sampled.model_dump() if settings.sampled else None,
            "quality": quality.model_dump(),
        }
        write_json(where / "card.json", card)
        cards.append({"sae": str(where)} | card)
        lines.append(
            f"{sae.config.site}: FVU {quality.fvu:.3f}, {quality.l0:.1f} active features per token, "
            f"{100 * quality.dead:.1f} % dead, {100 * quality.loss_recovered:.1f} % of the loss recovered "
            f"(on {quality.tokens:,} held-out tokens)\nwrote {where}"
        )
    facts = {"sae_hash": cards[0]["sae_hash"], "quality": cards[0]["quality"]} if len(saes) == 1 else {"saes": cards}
    runs.note(folder, **facts)
    body = {"run": str(folder)} | (cards[0] if len(saes) == 1 else {"saes": cards})
    show(body, json, "\n".join([*lines, f"next: demur find --sae {cards[0]['sae']}"]))


def show_plan(settings: SAESettings, gpu: str | None, count: int, model_config: Path | None, json: bool) -> None:
    """Prints what training with these settings would take."""
    gpus = [find_gpu(gpu)] if gpu else GPUS
    made = plan(shape(settings.model, model_config), settings, lambda path: locate(path).is_file(), count)
    estimates = [on(made, g) for g in gpus]
    body = made.model_dump(mode="json", exclude={"shape": {"blocks"}}) | {"peak": made.peak.total}
    show(
        body | {"gpus": [e.model_dump(mode="json") for e in estimates], "assumed": ASSUMED},
        json,
        "\n".join([described(made), *(drawn(t).rstrip() for t in plan_tables(made, estimates))])
        + f"\nassumed: {ASSUMED}\nnext: the same without --dry-run",
    )


def described(made: Plan) -> str:
    """Which SAE on which model."""
    s, run = made.shape, made.shape.up_to(made.site)
    disk = ", ".join(f"{name} {_bytes(size)}" for name, size in made.disk.items())
    lines = [
        f"{s.name} (from {'its own config' if s.config == 'its own' else s.config}): {s.parameters:,} parameters, "
        f"{len(s.blocks)} blocks, d_model {s.d_model:,}, {made.dtype}",
        f"{'SAE' if made.saes == 1 else f'{made.saes} SAEs, the last'} at {made.site}: {made.d_sae:,} features, "
        f"{made.rule}, k = {made.k}, {made.parameters:,} parameters; {len(run)} blocks "
        f"({sum(b.parameters for b in run):,} parameters) are run for it",
        f"tokens: at most {made.trained:,} to learn from in {made.steps:,} steps, {made.held_out:,} held out to measure",
        f"disk: {disk}",
        f"main memory: {_bytes(made.disk['text.safetensors'])} of token ids in each process beside the model; some three "
        "times that in the first, while it tokenises the text",
    ]
    return "\n".join(lines)


def plan_tables(made: Plan, estimates: list[Estimate]) -> list[Table]:
    """Text, work, memory and GPUs."""
    text = _table("text", "", "tokens", "file")
    for t in made.text:
        text.add_row(t.path, f"{t.tokens:,}", "there" if t.found else "missing")
    if made.sampled:
        text.add_row("sampled from the model", f"{made.sampled:,}", "")
    only = estimates[0] if len(estimates) == 1 else None
    work = _table("work", "", "", "tokens", "passes", "TFLOP", *([f"time on {only.gpu}"] if only else []))
    for s in made.stages:
        most = "at most " if s.at_most else ""
        time = [most + _time(only.seconds[s.name])] if only else []
        flops = f"{(s.model_flops + s.sae_flops) / 1e12:,.0f}"
        work.add_row(s.name, s.about, f"{s.tokens:,}", f"{s.passes:,}", flops, *time)
    memory = _table("memory", "while", "", "in all")
    for held in made.memory:
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in held.parts.items())
        memory.add_row(held.name, parts, _bytes(held.total))
    gpus = _table("time", "GPU", "memory", "fits", "time in all", "")
    for e in estimates:
        spread = " to ".join(dict.fromkeys((_time(e.least), _time(e.most))))
        name = e.gpu if made.gpus == 1 else f"{made.gpus} × {e.gpu}"
        gpus.add_row(name, _bytes(e.memory), "yes" if e.fits else "no", spread, "; ".join(e.remarks))
    return [text, work, memory, gpus]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        words = column in ("", "while", "file", "GPU", "fits")
        table.add_column(column, justify="left" if words else "right")
    return table


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
