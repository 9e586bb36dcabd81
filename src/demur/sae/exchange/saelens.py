"""SAELens's folders, `cfg.json` and `sae_weights.safetensors` (github.com/decoderesearch/SAELens, read at 6.54).

Of its architectures these are ours: standard (ReLU), topk, jumprelu, and in folders of a training that was stopped,
batchtopk with its one threshold. What training multiplies the input by it folds into the weights at the end; before, it
lies in `activation_scaler.json`.
"""

import math
from pathlib import Path
from typing import Any

import torch

from demur.errors import FileError, SAEError
from demur.files import write_json
from demur.models.sites import Site
from demur.sae.exchange import stated
from demur.sae.exchange.foreign import Foreign, Stamp
from demur.sae.rules import COUNTED, RuleName
from demur.sae.sae import SAE, read_tensors, write_tensors

NAME, CONFIG, WEIGHTS, SCALER = "SAELens", "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""Whose folders are written."""
RULES: dict[str, RuleName] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
}
ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "batchtopk": "jumprelu"}
"""What each rule of ours is there once trained."""


def read(folder: Path) -> Foreign:
    """Reads a folder that SAELens saved.

    Raises:
        FileError: a file is missing, truncated or damaged.
        SAEError: an SAE that demur has no rule for, or whose input is changed in a way that weights cannot say.
    """
    path = folder / CONFIG
    config = stated.config(path)
    metadata = stated.section(config.get("metadata") or config, path)  # before version 6 all keys lay side by side
    kind = _kind(config)
    if kind not in RULES:
        raise SAEError(f"{folder} holds a SAELens SAE of kind {kind!r}; demur reads {', '.join(RULES)}.")
    weights = read_tensors(folder / WEIGHTS)
    d_sae = stated.size(config, "d_sae", path)
    if (one := weights.pop("topk_threshold", None)) is not None:
        weights["threshold"] = torch.full((d_sae,), float(one), dtype=torch.float64)
    if (finetuned := weights.pop("scaling_factor", None)) is not None:  # of the activations, before version 6
        weights["W_dec"] = weights["W_dec"] * finetuned[:, None]
    return Foreign(
        format=NAME,
        path=folder,
        rule=RULES[kind],
        weights=weights,
        k=_k(config, path) if RULES[kind] in COUNTED else None,
        centred=bool(config.get("apply_b_dec_to_input", True)),
        by_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        scale=_scale(config, folder),
        width=(stated.size(config, "d_in", path), d_sae),
        place=str(metadata.get("hook_name") or metadata.get("hook_point") or metadata.get("hf_hook_name") or ""),
        model=str(metadata.get("model_name") or ""),
        kind=kind,
        stamp=Stamp.read(metadata.get("demur"), path),
    )


def write(sae: SAE, folder: Path) -> None:
    """Writes a folder that `sae_lens.SAE.load_from_disk` opens, in float32 (float64 stays).

    BatchTopK is written as JumpReLU with its thresholds, as SAELens itself does with an SAE that is trained.
    """
    c = sae.config
    write_tensors(folder / WEIGHTS, sae.weights, torch.promote_types(getattr(torch, c.dtype), torch.float32))
    layer = Site.parse(c.site).layer
    body: dict[str, Any] = {
        "architecture": ARCHITECTURES[c.rule],
        "d_in": c.d_model,
        "d_sae": c.d_sae,
        "dtype": "float64" if c.dtype == "float64" else "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": c.model,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "demur": Stamp(config=c, hash=sae.hash).model_dump(mode="json", exclude_none=True),
        },
    }
    if c.rule == "topk":
        body |= {"k": c.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, body)


def _kind(config: dict[str, Any]) -> str:
    # Before version 6 a Top-k SAE was a standard one with another activation function.
    old = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    return str(config.get("architecture") or "standard") if old == "relu" else str(old)


def _k(config: dict[str, Any], path: Path) -> int:
    if "k" not in config and isinstance(config.get("activation_fn_kwargs"), dict):
        return stated.size(config["activation_fn_kwargs"], "k", path)
    # BatchTopK's is an average, and need not be a whole number there.
    if isinstance(config.get("k"), float) and math.isfinite(config["k"]):
        return max(1, round(config["k"]))
    return stated.size(config, "k", path)


def _scale(config: dict[str, Any], folder: Path) -> float:
    how = config.get("normalize_activations", "none")
    if how in ("none", None, False):
        return 1.0
    if how not in ("expected_average_only_in", True):
        raise SAEError(
            f"the SAELens SAE at {folder} changes its input by {how!r}, token by token or by a matrix, which its weights "
            "cannot say; expected an SAE of the stream as it is, or scaled by one number."
        )
    if not (folder / SCALER).is_file():
        raise FileError(
            f"the SAELens SAE at {folder} takes inputs scaled by a number that {SCALER} would hold, and there is none; "
            "fold it into the weights with SAELens's fold_activation_norm_scaling_factor, and save again."
        )
    factor = stated.config(folder / SCALER).get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise FileError(f"{folder / SCALER}: `scaling_factor` is {factor!r}; expected a number above 0.")
    return float(factor)
