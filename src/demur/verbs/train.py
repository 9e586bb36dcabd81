"""`demur train`: text → SAE."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from demur import runs
from demur.config import locate
from demur.files import write_json
from demur.models.load import load
from demur.sae.quality import measure
from demur.sae.sae import WEIGHTS
from demur.sae.train import SAESettings, gather_text, train
from demur.verbs.output import say, show

DEFAULTS = SAESettings()


def train_verb(
    settings: Annotated[SAESettings, Parameter(name="*")] = DEFAULTS,
    *,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Train an SAE on text; streams activations from the model, and goes on where it stopped.

    Examples
    --------
    demur train -c configs/smollm2-sae.toml --run runs/sae
    demur train -c configs/smollm2-sae.toml --site 20.resid_post

    Parameters
    ----------
    run
        Folder of the run; one that exists is resumed.
    json
        Print one JSON object with the SAE's figures, and nothing else.
    """
    folder = runs.open_run("train", run, settings.model_dump(mode="json"))
    say(f"run: {folder}")
    lm = load(settings)
    lm.block(settings.site)
    text, held_out = gather_text(lm, settings, folder)
    sae = train(lm, text, settings, folder)
    sae.save(folder / "sae")
    quality = measure(lm, sae, held_out)
    card = {
        "model": lm.name,
        "model_hash": lm.hash,
        "site": settings.site,
        "sae_hash": sae.hash,
        "file_hash": runs.file_hash(folder / "sae" / WEIGHTS),
        "command": runs.command(),
        "tokens": int((text.lengths() - 1).sum()),
        "text": [s.model_dump() | {"file_hash": runs.file_hash(locate(s.path))} for s in settings.text],
        "sampled": settings.sampled.model_dump() if settings.sampled else None,
        "quality": quality.model_dump(),
    }
    write_json(folder / "sae" / "card.json", card)
    runs.note(folder, sae_hash=sae.hash, quality=quality.model_dump())
    show(
        {"run": str(folder), "sae": str(folder / "sae")} | card,
        json,
        f"FVU {quality.fvu:.3f}, {quality.l0:.1f} active features per token, {100 * quality.dead:.1f} % dead, "
        f"{100 * quality.loss_recovered:.1f} % of the loss recovered (on {quality.tokens:,} held-out tokens)\n"
        f"wrote {folder / 'sae'}\nnext: demur find --sae {folder / 'sae'}",
    )
