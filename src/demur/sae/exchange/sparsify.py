"""sparsify's folders, `cfg.json` and `sae.safetensors` (github.com/EleutherAI/sparsify, read at 1.3).

Its SAEs are Top-k; the folder is called as the module is that it was trained on (`layers.14`).
"""

from pathlib import Path

import torch

from demur.errors import SAEError
from demur.files import write_json
from demur.sae.exchange import stated
from demur.sae.exchange.foreign import Foreign, Stamp, site_of
from demur.sae.sae import SAE, read_tensors, write_tensors

NAME, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"


def read(folder: Path) -> Foreign:
    """Reads a folder that sparsify saved.

    Raises:
        FileError: a file is missing, truncated or damaged.
        SAEError: it is no SAE but a transcoder, has a skip connection, or another activation than Top-k.
    """
    path = folder / CONFIG
    config = stated.config(path)
    kind = str(config.get("activation", "topk"))
    others = {
        "a transcoder": config.get("transcode"),
        "an SAE with a skip connection": config.get("skip_connection"),
        f"an SAE with the activation {kind!r}": kind != "topk",
    }
    if wrong := [what for what, is_so in others.items() if is_so]:
        raise SAEError(f"{folder} holds {wrong[0]} of sparsify's; demur reads its Top-k SAEs.")
    d_model = stated.size(config, "d_in", path)
    d_sae = config.get("num_latents") or stated.size(config, "expansion_factor", path) * d_model
    found = read_tensors(folder / WEIGHTS)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    weights = {ours: found[theirs] for ours, theirs in names.items() if theirs in found}
    if "W_enc" in weights:
        weights["W_enc"] = weights["W_enc"].T
    return Foreign(
        format=NAME,
        path=folder,
        rule="topk",
        weights=weights,
        k=stated.size(config, "k", path),
        width=(d_model, stated.size({"num_latents": d_sae}, "num_latents", path)),
        place=folder.name if site_of(folder.name) else "",
        kind=kind,
        stamp=Stamp.read(config.get("demur"), path),
    )


def write(sae: SAE, folder: Path) -> None:
    """Writes a folder that `sparsify.SparseCoder.load_from_disk` opens, in float32 (float64 stays).

    Raises:
        SAEError: the SAE's rule is not Top-k.
    """
    c = sae.config
    if c.rule != "topk":
        raise SAEError(f"sparsify has Top-k SAEs only, and this one's rule is {c.rule}; write it with --to saelens.")
    w = sae.weights
    theirs = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    write_tensors(folder / WEIGHTS, theirs, torch.promote_types(getattr(torch, c.dtype), torch.float32))
    body = {
        "activation": "topk",
        "expansion_factor": max(1, c.d_sae // c.d_model),
        "normalize_decoder": True,
        "num_latents": c.d_sae,
        "k": c.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": c.d_model,
        "demur": Stamp(config=c, hash=sae.hash).model_dump(mode="json", exclude_none=True),
    }
    write_json(folder / CONFIG, body)
