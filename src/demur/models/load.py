"""Any Hugging Face causal language model: a hub name, a local folder, a GGUF file, or `embedded`."""

import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from demur.config import Settings
from demur.errors import ModelError, SettingsError, first_line
from demur.models import embedded
from demur.models.gguf import converted
from demur.models.hooks import contiguous
from demur.models.sites import Site, find_blocks
from demur.progress import say


class ModelSettings(Settings):
    """Which model, and how it is held."""

    model: str = embedded.NAME
    """`embedded`, a folder, a GGUF file, or a name on the Hugging Face hub."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the weights and of every figure."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""


@dataclass(frozen=True)
class LanguageModel:
    """A model with what the project needs to know about it."""

    name: str
    model: Any
    """The transformers model, in eval mode."""
    tokenizer: Any
    blocks: nn.ModuleList
    d_model: int
    context: int
    """Longest prompt plus reply, in tokens."""
    hash: str
    """Twelve hex digits of the config and a sample of every weight; the same for any file format or precision."""

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.model.get_input_embeddings().weight.dtype

    def block(self, site: Site | str) -> nn.Module:
        """The block whose output is the site.

        Raises:
            SettingsError: the model has no such block.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        site.check(self.name, len(self.blocks))
        return self.blocks[site.layer]

    def logits(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Int[Tensor, "batch seq"] | Float[Tensor, "batch 1 seq seq"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        last: int = 0,
        columns: Int[Tensor, " kept"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """One pass without a cache; `last` keeps only so many columns (0 keeps all), `columns` only those named.

        Rows padded on the right need no mask, since no token sees what follows it; rows padded on the left need mask
        and positions (as `Encoded` has them). A mask of four axes is added to the attention scores as it is.
        """
        # The head is a fifth of a small model, and most of it would be thrown away. Not every model takes all of these.
        keep = (last or None) if columns is None else columns
        wanted = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": keep}
        accepted = inspect.signature(self.model.forward).parameters
        given = {k: v for k, v in wanted.items() if v is not None and k in accepted}
        logits = self.model(input_ids=ids, use_cache=False, **given).logits
        if columns is not None:
            return logits if "logits_to_keep" in given else logits[:, columns]
        return logits[:, -last:]


def load(settings: ModelSettings | str = embedded.NAME) -> LanguageModel:
    """Loads a model and its tokenizer, finds its blocks, takes its hash.

    Raises:
        ModelError: it cannot be had (the message says what to type), or it has no list of blocks.
    """
    if isinstance(settings, str):
        settings = ModelSettings(model=settings)
    device = _device(settings.device)
    where = source(settings.model)
    import transformers

    quiet()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, settings.dtype))
    except Exception as error:  # transformers raises some twenty kinds here
        raise ModelError(
            f"{settings.model} cannot be loaded as a causal language model "
            f"({type(error).__name__}: {first_line(error)}); "
            "expected `embedded`, a folder that transformers wrote, a GGUF file or a name on the Hugging Face hub."
        ) from error
    if device.type == "cpu" and not _multiplies_in(settings.dtype):
        say(
            f"this processor does not multiply in {settings.dtype}, and emulates it slowly; --dtype float32 is faster here."
        )
    return wrap(model.to(device), tokenizer, settings.model)


def wrap(model: Any, tokenizer: Any, name: str) -> LanguageModel:
    """A transformers model that is already in memory, as the project holds it."""
    config = model.config.get_text_config()
    blocks = find_blocks(model, config.num_hidden_layers)
    if tokenizer is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (head := model.get_output_embeddings()) is not None:
        # transformers hands over a slice of one position: in bfloat16 a batch of 64 waited 2.3 s for its first token.
        contiguous(head)
    return LanguageModel(
        name=name,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        blocks=blocks,
        d_model=config.hidden_size,
        context=getattr(config, "max_position_embeddings", None) or 1_000_000,
        hash=fingerprint(model),
    )


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits from the shape of the model and 64 evenly spaced entries of each weight, rounded to bfloat16.

    The rounding makes a model loaded in bfloat16 and the same model in float32 one model, as they are to a policy.
    """
    weights = model.state_dict().items()
    return fingerprint_of((n, list(w.shape), _sample(w.detach().flatten())) for n, w in weights)


def fingerprint_of(samples: Iterable[tuple[str, list[int], Tensor]]) -> str:
    """The hash from the name and the shape of each weight and its entries at `sample_places`."""
    digest = hashlib.sha256()
    for name, shape, picked in sorted(samples, key=lambda sample: sample[0]):
        digest.update(json.dumps([name, shape]).encode())
        digest.update(picked.to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def sample_places(numbers: int) -> range:
    """Which entries of a weight of so many numbers go into its model's hash."""
    step = max(1, numbers // 64)
    return range(0, numbers, step)[:64]


def _sample(flat: Tensor) -> Tensor:
    places = sample_places(flat.numel())
    return flat[places.start : places.stop : places.step]


def tokenizer_hash(tokenizer: Any) -> str:
    """Twelve hex digits of a tokenizer's words and their numbers, and of its chat template."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps([words, tokenizer.chat_template]).encode()).hexdigest()[:12]


def quiet() -> None:
    """Keeps transformers from talking: what it has to say, our errors say."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def source(name: str) -> str:
    """What transformers is to read for a model by name: a folder or a hub name; converts a GGUF file.

    Raises:
        ModelError: the name is of neither kind.
    """
    if name == embedded.NAME:
        return str(embedded.folder())
    path = Path(name)
    if path.suffix == ".gguf" or path.is_file():
        return str(converted(path))
    if path.is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"no model at {name}; expected `embedded`, a folder that transformers wrote, a GGUF file or a hub name "
            "like owner/model."
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return name


def _multiplies_in(dtype: str) -> bool:
    # Whether torch has fast products of this precision for this processor: a bfloat16 emulated in AVX2 takes five times as
    # long as float32. torch asks these itself, and has no public name for them.
    asked = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}.get(dtype)
    return asked is None or bool(getattr(torch.ops.mkldnn, asked)())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device {name!r} is not known; expected auto, cpu or cuda.") from error
