"""A model without its weights: what it is made of, from its config alone, for planning before anything is fetched."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from demur.errors import FileError, ModelError, first_line
from demur.files import read_json
from demur.models.load import quiet, source
from demur.models.sites import Site, find_blocks
from demur.records import Record


class Block(Record):
    """One block."""

    parameters: int
    matrices: int
    """Parameters in its matrices, each of which multiplies every token once."""
    widest: int
    """Longest side of a matrix: the most numbers that one of them makes of a token, or takes."""


class Shape(Record):
    """What a model is made of."""

    name: str
    config: str
    """Where its config was read."""
    parameters: int
    """Tied ones once, as in memory."""
    d_model: int
    vocab: int
    attention: int
    """Width of a block's attention: heads × their width; 0 where there is none."""
    cached: int
    """Numbers that a KV cache keeps for each token in each block."""
    blocks: tuple[Block, ...]

    def up_to(self, site: str) -> tuple[Block, ...]:
        """The blocks that are run to read a site.

        Raises:
            SettingsError: the model has no such block.
        """
        last = Site.parse(site)
        last.check(self.name, len(self.blocks))
        return self.blocks[: last.layer + 1]


def shape(name: str, fallback: Path | None = None) -> Shape:
    """The shape of a model by name (as `load` takes them).

    From its own config where that is at hand; else from the file given, and without one from the hub.

    Raises:
        ModelError: neither can be had, or it is no causal language model.
        FileError: the file is not a transformers config.
    """
    import transformers

    quiet()
    try:
        # With a file to fall back on, nobody need wait for a network that may not be there.
        here = {"local_files_only": True} if fallback else {}
        config, where = transformers.AutoConfig.from_pretrained(source(name), **here), "its own"
    except Exception as error:  # transformers raises some twenty kinds here
        if fallback is None:
            raise ModelError(
                f"the config of {name} cannot be had ({type(error).__name__}: {first_line(error)}); "
                "give a transformers config.json with --model-config FILE."
            ) from error
        config, where = read_config(fallback), str(fallback)
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ModelError(
            f"{name} is no causal language model that transformers knows ({type(error).__name__}: {first_line(error)})."
        ) from error
    return measured(model, name, where)


def read_config(path: Path) -> Any:
    """A transformers config from a config.json.

    Raises:
        FileError: no such file, or another kind of JSON.
    """
    import transformers

    body = read_json(path)
    kind = body.get("model_type") if isinstance(body, dict) else None
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise FileError(f"{path} is not a transformers config: its `model_type` is {kind!r}; give a config.json.")
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(body)
    except Exception as error:
        raise FileError(f"{path} is not a config of {kind} ({first_line(error)}).") from error


def measured(model: nn.Module, name: str, config: str = "its own") -> Shape:
    """The shape of a transformers model, with weights or on the `meta` device."""
    text = model.config.get_text_config()  # type: ignore[union-attr]
    heads = getattr(text, "num_attention_heads", 0) or 0
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return Shape(
        name=name,
        config=config,
        parameters=sum(p.numel() for p in model.parameters()),
        d_model=text.hidden_size,
        vocab=text.vocab_size,
        attention=heads * width,
        cached=2 * (getattr(text, "num_key_value_heads", None) or heads) * width,
        blocks=tuple(_block(b) for b in find_blocks(model, text.num_hidden_layers)),
    )


def _block(block: nn.Module) -> Block:
    matrices = [p for p in block.parameters() if p.ndim > 1]
    return Block(
        parameters=sum(p.numel() for p in block.parameters()),
        matrices=sum(p.numel() for p in matrices),
        widest=max((max(p.shape[-2:]) for p in matrices), default=0),
    )
