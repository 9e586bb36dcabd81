"""The sparse autoencoder: what it is, and its two files (`sae.json`, `sae.safetensors`)."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from demur.errors import FileError, SAEError
from demur.files import nearest, read_json, replacing, write_json
from demur.records import Record, parse
from demur.sae.rules import COUNTED, RULES, THRESHOLDED, RuleName, Sparse, dense

CONFIG, WEIGHTS = "sae.json", "sae.safetensors"
SHAPES = {"W_enc": ("d_model", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_model"), "b_dec": ("d_model",)}
THRESHOLD = {"threshold": ("d_sae",)}
"""Of the rules that have one."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        FileError: the file is missing, truncated or of another kind.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"{path} cannot be read ({error}); missing, truncated or not safetensors; train or copy it again."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes tensors in this precision as a safetensors file."""
    with replacing(path) as tmp:
        save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, tmp)


class SAEConfig(Record):
    """What an SAE is, apart from its weights."""

    d_model: int = Field(gt=0)
    d_sae: int = Field(gt=0)
    k: int | None = Field(default=None, gt=0)
    """Active features per token: with topk at most, with batchtopk on average; the other rules have none."""
    rule: RuleName = "topk"
    site: str
    model: str
    model_hash: str
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    """Precision on disk; in memory it is the model's."""

    @model_validator(mode="after")
    def _as_the_rule_has_it(self) -> "SAEConfig":
        if (self.k is None) == (self.rule in COUNTED):
            raise ValueError(f"the rule {self.rule} {'needs a `k`' if self.k is None else 'has no `k`'}")
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights that such an SAE has, in the order in which they are hashed, and their shapes."""
        axes = SHAPES | (THRESHOLD if self.rule in THRESHOLDED else {})
        return {name: tuple(getattr(self, axis) for axis in of) for name, of in axes.items()}


class SAE:
    """`f(x) = rule((x − b_dec) W_enc + b_enc)`, `x̂ = f W_dec + b_dec`, decoder rows of norm 1.

    So an activation is a length in the residual stream: its units are those of `x`. `threshold` is for the rules that
    have one (`rules.THRESHOLDED`), in the same units.
    """

    def __init__(
        self,
        config: SAEConfig,
        W_enc: Float[Tensor, "d_model d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_model"],
        b_dec: Float[Tensor, " d_model"],
        threshold: Float[Tensor, " d_sae"] | None = None,
    ) -> None:
        self.config = config
        self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold = W_enc, b_enc, W_dec, b_dec, threshold
        for name, expected in config.shapes.items():
            weight = getattr(self, name)
            if weight is None or tuple(weight.shape) != expected:
                shape = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
                raise SAEError(f"the SAE's {name} {shape}; its config says {expected}.")
        if threshold is not None and "threshold" not in config.shapes:
            raise SAEError(f"an SAE of rule {config.rule} has no threshold; rules with one are {THRESHOLDED}.")

    @property
    def weights(self) -> dict[str, Tensor]:
        """By name, in the order in which they are hashed."""
        return {name: getattr(self, name) for name in self.config.shapes}

    def encode_sparse(self, x: Float[Tensor, "tokens d_model"]) -> Sparse:
        """The active features of each token: values and indices, each `[tokens, width]` (`rules.Sparse`)."""
        self.check_width(x.shape[-1])
        pre = torch.addmm(self.b_enc, x.to(self.b_dec) - self.b_dec, self.W_enc)
        return RULES[self.config.rule](pre, self.config.k, self.threshold)

    def encode(self, x: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens d_sae"]:
        """All activations of each token, zeros included, in the units of `x`."""
        return dense(*self.encode_sparse(x), self.config.d_sae)

    def read(self, x: Float[Tensor, "tokens d_model"], features: Int[Tensor, " n"]) -> Float[Tensor, "tokens n"]:
        """The activations of some features, as the full encode gives them (Top-k included)."""
        # In pieces: a long batch of dense activations would be many times the size of what is wanted of it.
        return torch.cat([self.encode(part)[:, features] for part in x.split(4096)])

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Float[Tensor, "tokens d_model"]:
        """The reconstruction from active features."""
        return F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec

    def decode(self, f: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_model"]:
        """The reconstruction from all activations."""
        return f @ self.W_dec + self.b_dec

    def to(self, like: Tensor) -> "SAE":
        """The same SAE on the device of `like`, in its precision, but in float32 at least.

        In half precision the k-th and the next pre-activation of a token are often equal: which of two features is active
        would be chance, and the ties slow.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        moved = SAE(self.config, **{name: weight.to(like.device, dtype) for name, weight in self.weights.items()})
        # It is still the SAE that was saved: a policy made in bfloat16 is one for the same SAE in float32.
        moved.hash = self.hash
        return moved

    def check_width(self, d_model: int) -> None:
        """Raises SAEError unless activations of this width fit."""
        if d_model != self.config.d_model:
            raise SAEError(
                f"the SAE takes activations of width {self.config.d_model} (made for {self.config.model}), "
                f"but the model's are {d_model} wide; give an SAE that was trained on this model."
            )

    def check_features(self, features: list[int]) -> None:
        """Raises SAEError unless all these features exist."""
        wrong = [f for f in features if not 0 <= f < self.config.d_sae]
        if wrong:
            raise SAEError(f"feature {wrong[0]} is not in the SAE, whose features are 0 to {self.config.d_sae - 1}.")

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits of the weights as saved; taken once, since every steered call compares it."""
        dtype = getattr(torch, self.config.dtype)
        digest = hashlib.sha256()
        for weight in self.weights.values():
            weight = weight.detach().to("cpu", dtype).contiguous()
            digest.update(weight.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Writes `sae.json` and `sae.safetensors` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, self.weights, getattr(torch, self.config.dtype))
        write_json(folder / CONFIG, self.config)

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "SAE":
        """Reads a folder that `save` wrote.

        Raises:
            FileError: a file is missing, truncated or not an SAE.
            SAEError: the shapes are not those the config states.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileError(f"no SAE at {folder}{nearest(folder)}")
        config = parse(SAEConfig, read_json(folder / CONFIG), folder / CONFIG, FileError)
        weights = read_tensors(path := folder / WEIGHTS)
        if set(weights) != set(config.shapes):
            raise FileError(f"{path} holds {sorted(weights)}; expected {sorted(config.shapes)}.")
        return cls(config, **{name: weight.to(device, dtype) for name, weight in weights.items()})
