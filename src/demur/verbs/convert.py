"""`demur convert`: an SAE in any known format → the same SAE in another."""

from pathlib import Path

from demur import runs
from demur.files import write_json
from demur.models.sites import Site
from demur.sae.exchange.formats import DEMUR, check_writer, format_of, open_sae, read_foreign, write
from demur.verbs.output import show

OPENS = {
    "demur": "demur find --sae {out}",
    "saelens": 'sae_lens.SAE.load_from_disk("{out}")',
    "sparsify": 'sparsify.SparseCoder.load_from_disk("{out}")',
}


def convert_verb(
    sae: Path, *, out: Path, to: str = DEMUR, site: str | None = None, model: str | None = None, json: bool = False
) -> None:
    """Write an SAE in another format: what it computes stays the same.

    Reads demur's own, SAELens, sparsify, dictionary_learning and Gemma Scope. Needed before other verbs only where an
    SAE does not say where in the model it belongs; all of them open any of these formats.

    Examples
    --------
    demur convert runs/sae/sae --to saelens --out exported
    demur convert gemma-scope/layer_20/width_16k/average_l0_71 --model google/gemma-2-2b --out sae
    demur convert layers.14 --site 14.resid_post --out sae

    Parameters
    ----------
    sae
        Folder or file of the SAE.
    out
        A new folder.
    to
        demur, saelens or sparsify.
    site
        Where in the model it belongs, such as 14.resid_post, instead of what its files say.
    model
        The model that it is for, instead of what its files say.
    json
        Print one JSON object, and nothing else.
    """
    check_writer(to)
    if site is not None:
        Site.parse(site)
    found = format_of(sae)
    if found is None or found[0] == DEMUR:
        opened = open_sae(sae)
        changed = {k: v for k, v in (("site", site), ("model", model)) if v is not None}
        if model not in (None, opened.config.model):
            changed["model_hash"] = ""  # it is the other model's
        opened.config = opened.config.model_copy(update=changed)
    else:
        opened = read_foreign(sae).sae(site, model)
    write(opened, to, out)
    c = opened.config
    came = {"format": found[0] if found else DEMUR, "command": runs.command(), "sae_hash": opened.hash}
    if to == DEMUR:
        write_json(out / "card.json", came | {"model": c.model, "site": c.site})
    body = {"sae": str(out), "to": to, "from": came["format"], "hash": opened.hash} | c.model_dump(mode="json")
    show(body, json, f"wrote {out}\nnext: {OPENS[to].format(out=out)}")
