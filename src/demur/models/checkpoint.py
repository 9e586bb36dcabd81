"""The hash of a model from its files, without loading it: for whoever runs a model in another form than transformers'."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demur.errors import ModelError, first_line
from demur.files import read_json
from demur.models.load import fingerprint, fingerprint_of, quiet, sample_places


def checkpoint_hash(folder: Path) -> str:
    """What `fingerprint` says of the model in a folder that transformers wrote.

    Of each weight only the entries that the hash is made of are read, so a model of any size takes seconds. Files that
    name or cut their weights otherwise than the model does are loaded as a whole.

    Raises:
        ModelError: it is no causal language model that transformers knows.
    """
    import transformers

    quiet()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
        where = _files(folder)
        stored = _stored(model, where)
        if stored is None:
            return fingerprint(transformers.AutoModelForCausalLM.from_pretrained(folder))
        return fingerprint_of(_samples(model.state_dict(), where, stored))
    except Exception as error:  # transformers and safetensors raise some twenty kinds here
        raise ModelError(
            f"the weights in {folder} cannot be read ({type(error).__name__}: {first_line(error)}); "
            "expected a folder that transformers wrote, with safetensors files."
        ) from error


def _files(folder: Path) -> dict[str, Path]:
    # The file in which each weight is.
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in read_json(index)["weight_map"].items()}
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _stored(model: Any, where: Mapping[str, Path]) -> dict[str, str] | None:
    # Under which name each weight is stored: its own, or that of a weight that it is tied to; None where one is missing.
    found = {}
    same: dict[int, str] = {}
    kept = model.state_dict(keep_vars=True)
    for name, weight in kept.items():
        if name in where:
            same[id(weight)] = name
    for name, weight in kept.items():
        stored = name if name in where else same.get(id(weight))
        if stored is None:
            return None
        found[name] = stored
    return found


def _samples(
    weights: Mapping[str, Tensor], where: Mapping[str, Path], stored: Mapping[str, str]
) -> Iterator[tuple[str, list[int], Tensor]]:
    from safetensors import safe_open

    with ExitStack() as opened:
        files: dict[Path, Any] = {}
        for path in sorted(set(where.values())):
            files[path] = opened.enter_context(safe_open(path, "pt"))  # type: ignore[arg-type]
        for name, weight in weights.items():
            part = files[where[stored[name]]].get_slice(stored[name])
            if list(part.get_shape()) != list(weight.shape):
                raise ModelError(f"{name} has the shape {part.get_shape()}, the model's is {list(weight.shape)}")
            places = sample_places(weight.numel())
            if weight.ndim == 2:
                wide = weight.shape[1]
                rows = {r: part[r : r + 1][0] for r in sorted({i // wide for i in places})}
                picked = torch.stack([rows[i // wide][i % wide] for i in places])
            else:
                picked = part[:].flatten()[torch.tensor(places)]
            yield name, list(weight.shape), picked
