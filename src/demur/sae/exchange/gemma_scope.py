"""Gemma Scope's files: `params.npz` (Gemma 2; Lieberum et al., arXiv 2408.05147) and `params.safetensors` (Gemma 3).

JumpReLU with a threshold for each feature; the decoder's bias stays in the input. Where one belongs is in the names of
its folders only, such as `layer_20/width_16k/average_l0_71` or `resid_post/layer_9_width_16k_l0_small`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demur.errors import FileError, SAEError
from demur.sae.exchange import stated
from demur.sae.exchange.foreign import Foreign
from demur.sae.sae import read_tensors

NAME, CONFIG, NPZ, SAFETENSORS = "Gemma Scope", "config.json", "params.npz", "params.safetensors"
SCALED = "scaling_factor"
"""Of the activations, in some files; always 1."""


def read(path: Path) -> Foreign:
    """Reads a file of parameters, `.npz` or `.safetensors`, and `config.json` if there is one beside it.

    Raises:
        FileError: the file is missing, truncated, damaged, or holds more than arrays.
        SAEError: a transcoder.
    """
    found = arrays(path) if path.suffix == ".npz" else read_tensors(path)
    weights = {("W_" + n[2:] if n.startswith("w_") else n): w for n, w in found.items() if n != SCALED}
    config = stated.config(path.parent / CONFIG) if (path.parent / CONFIG).is_file() else {}
    if "affine_skip_connection" in weights or "hf_hook_point_out" in config:
        raise SAEError(f"{path} is a transcoder; demur reads Gemma Scope's SAEs of the residual stream.")
    folders = "/".join(path.absolute().parent.parts)
    return Foreign(
        format=NAME,
        path=path,
        rule="jumprelu",
        weights=weights,
        centred=False,
        place=_place(folders),
        model=str(config.get("model_name") or _model(folders)),
        kind="jumprelu",
    )


def arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file as tensors; objects, which may hold code, are refused.

    Raises:
        FileError: the file is missing, truncated, damaged, or holds more than arrays of numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in found.files}
    except Exception as error:  # numpy raises whatever it stumbles upon
        raise FileError(
            f"{path} was not opened: it is missing, truncated, no npz file, or holds more than arrays of numbers "
            f"({type(error).__name__}); get it again."
        ) from error


def _place(folders: str) -> str:
    layer = re.search(r"layer_(\d+)", folders)
    other = re.search(r"(?:-|/)(att|mlp|attn_out|mlp_out|transcoder\w*|embedding\w*)(?:/|$)", folders)
    if layer is None or other:
        return other[1] if other else ""
    return f"resid_post_layer_{layer[1]}"


def _model(folders: str) -> str:
    # google/gemma-scope-2b-pt-res is of google/gemma-2-2b; google/gemma-scope-2-1b-it of google/gemma-3-1b-it.
    if match := re.search(r"gemma-scope-2-(\w+-\w+)", folders):
        return f"google/gemma-3-{match[1]}"
    if match := re.search(r"gemma-scope-(\w+)-(pt|it)", folders):
        return f"google/gemma-2-{match[1]}" + ("-it" if match[2] == "it" else "")
    return ""
