"""dictionary_learning's folders, `ae.pt` and `config.json` (github.com/saprmarks/dictionary_learning, read at 0.1).

`ae.pt` is a checkpoint of torch, which may hold code. Here alone is one opened, and only for its tensors: with
`weights_only` torch refuses everything else before any of it is run.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demur.errors import FileError, SAEError
from demur.sae.exchange import stated
from demur.sae.exchange.foreign import Foreign
from demur.sae.rules import COUNTED, THRESHOLDED, RuleName

NAME, CONFIG, WEIGHTS = "dictionary_learning", "config.json", "ae.pt"
KINDS: dict[str, RuleName] = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
}
CENTRED = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
"""Kinds that take the decoder's bias off the input."""
NAMES = {
    "W_enc": ("encoder.weight", "W_enc"),
    "b_enc": ("encoder.bias", "b_enc"),
    "W_dec": ("decoder.weight", "W_dec"),
    "b_dec": ("bias", "decoder.bias", "b_dec"),
}
"""What a weight is called, by kind."""


def read(path: Path) -> Foreign:
    """Reads a checkpoint beside its `config.json`.

    Raises:
        FileError: a file is missing, truncated, damaged, or holds more than tensors.
        SAEError: an SAE that demur has no rule for.
    """
    where = path.parent / CONFIG
    if not where.is_file() and path.parent.name == "checkpoints":
        where = path.parent.parent / CONFIG
    trainer = stated.section(stated.config(where).get("trainer"), where)
    kind = str(trainer.get("dict_class"))
    if kind not in KINDS:
        raise SAEError(f"{path} holds an SAE of dictionary_learning's class {kind}; demur reads {', '.join(KINDS)}.")
    found = tensors(path)
    weights = {ours: found[n] for ours, names in NAMES.items() for n in names if n in found}
    for layer, ours in (("encoder.weight", "W_enc"), ("decoder.weight", "W_dec")):
        if layer in found:  # a linear layer keeps `[out, in]`
            weights[ours] = weights[ours].T
    rule = KINDS[kind]
    if rule in THRESHOLDED and "threshold" in found:
        weights["threshold"] = threshold = found["threshold"]
        if threshold.ndim == 0 and "b_enc" in weights:
            # One for all features. Below 0 (not learnt yet) it cuts off nothing that ReLU would leave.
            weights["threshold"] = threshold.double().clamp_min(0).expand_as(weights["b_enc"])
    submodule, layer = trainer.get("submodule_name"), trainer.get("layer")
    return Foreign(
        format=NAME,
        path=path,
        rule=rule,
        weights=weights,
        k=stated.size(trainer, "k", where) if rule in COUNTED else None,
        centred=kind in CENTRED,
        width=(stated.size(trainer, "activation_dim", where), stated.size(trainer, "dict_size", where)),
        place=str(submodule or (f"resid_post_layer_{layer}" if isinstance(layer, int) else "")),
        model=str(trainer.get("lm_name") or ""),
        kind=kind,
    )


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of torch, by name; nothing in it is run.

    Raises:
        FileError: the file is missing, truncated, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist; a {NAME} SAE has it beside its {CONFIG}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are none, torch says more than the error does
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever it stumbles upon
        raise FileError(
            f"{path} was not opened: it is truncated, no checkpoint of torch, or holds more than tensors, such as code "
            f"that would run ({type(error).__name__}); get it again from a source that you trust."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise FileError(f"{path} holds no dictionary of tensors; expected what {NAME} saves.")
    return found
