"""An SAE as another library has it, and the one place where its conventions become ours.

Ours: the decoder's bias is taken off the input, decoder rows have norm 1, activations and thresholds are lengths in the
residual stream. What others do otherwise is linear, so it goes into the weights exactly, in float64:

- an input multiplied by `scale` before encoding, and divided by it after decoding: `W_enc · s`, `W_dec / s`, `b_dec / s`;
- an input that keeps the decoder's bias: `b_enc + b_dec W_enc`;
- decoder rows of norm n: `W_enc · n`, `b_enc · n`, thresholds `· n`, `W_dec / n`. Their activation times n is ours.

One case is not linear: Top-k by activations whose decoder rows differ in norm. Multiplied by the norms another k would be
largest, so such an SAE keeps its rows, and its activations are in units of its own.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demur.errors import FileError, SAEError
from demur.records import Record, parse
from demur.sae.rules import THRESHOLDED, RuleName
from demur.sae.sae import SAE, SHAPES, SAEConfig

EVEN = 1e-5
"""Decoder rows whose norms differ by a smaller share are of one norm, apart from rounding."""
PART = 4096
"""Features at a time where float64 copies are made."""
PLACES = (
    (re.compile(r"blocks\.(\d+)\.hook_resid_post"), 0),
    (re.compile(r"blocks\.(\d+)\.hook_resid_pre"), -1),  # what goes into a block came out of the one before
    (re.compile(r"(?:.*\.)?(?:layers|blocks|h)\.(\d+)(?:\.output)?"), 0),
    (re.compile(r"resid_post(?:_layer)?_(\d+)"), 0),
    (re.compile(r"(\d+)\.resid_post"), 0),
)


class Stamp(Record):
    """What demur leaves in a file of another format, so that it knows its own SAE again."""

    config: SAEConfig
    hash: str

    @classmethod
    def read(cls, raw: Any, where: Path) -> "Stamp | None":
        """What is left under the key `demur`, if anything.

        Raises:
            FileError: it is not what demur leaves.
        """
        return None if raw is None else parse(cls, raw, where, FileError)


@dataclass(frozen=True)
class Foreign:
    """An SAE read from another library's files: its own weights, turned our way round, and what it does with them."""

    format: str
    path: Path
    rule: RuleName
    weights: dict[str, Tensor]
    """`W_enc b_enc W_dec b_dec` and, of the rules that have one, `threshold`, shaped as ours."""
    k: int | None = None
    centred: bool = True
    """Whether the decoder's bias is taken off the input."""
    by_norm: bool = False
    """Whether pre-activations are multiplied by the norms of their decoder rows before the rule is applied."""
    scale: float = 1.0
    """What the input is multiplied by."""
    width: tuple[int, int] | None = None
    """`d_model` and `d_sae`, where the config states them."""
    place: str = ""
    """Where in the model, in their words."""
    model: str = ""
    kind: str = ""
    """What they call such an SAE."""
    stamp: Stamp | None = None
    """If demur wrote the files: what it was. Somebody may have changed the weights since."""

    @property
    def site(self) -> str | None:
        """The place in our words; None if it is not the residual stream after a block, or not stated."""
        return site_of(self.place) or (self.stamp.config.site if self.stamp else None)

    def checked(self) -> None:
        """Raises FileError or SAEError unless all weights are there, finite, and of the shapes that they should have."""
        names = [*SHAPES, *(["threshold"] if self.rule in THRESHOLDED else [])]
        if missing := [n for n in names if n not in self.weights]:
            raise FileError(f"{self.path} holds no {missing[0]}, which a {self.format} SAE of kind {self.kind} has.")
        d_model, d_sae = self.width or (self.weights["b_dec"].numel(), self.weights["b_enc"].numel())
        sizes = {"d_model": d_model, "d_sae": d_sae}
        for name in names:
            shape = tuple(self.weights[name].shape)
            expected = tuple(sizes[axis] for axis in SHAPES.get(name, ("d_sae",)))
            if shape != expected:
                said = "its config says" if self.width else "its biases say"
                raise SAEError(f"{self.path}: {name} has shape {shape}; {said} {expected}.")
            if not all(bool(part.isfinite().all()) for part in self.weights[name].split(PART)):
                raise FileError(f"{self.path}: {name} holds values that are no numbers; the file is damaged.")

    def sae(self, site: str | None = None, model: str | None = None) -> SAE:
        """The same SAE in our form; `site` and `model` override what the files say.

        Raises:
            FileError, SAEError: weights are missing, damaged or of the wrong shape, or nobody says where it belongs.
        """
        self.checked()
        if (own := self._unchanged()) is not None:
            changed = {"site": site or own.config.site, "model": model or own.config.model}
            if model not in (None, own.config.model):
                changed["model_hash"] = ""  # it is the other model's
            return SAE(own.config.model_copy(update=changed), **own.weights)
        weights = folded(self)
        config = SAEConfig(
            d_model=weights["W_dec"].shape[1],
            d_sae=weights["W_dec"].shape[0],
            k=self.k,
            rule=self.rule,
            site=site or self.site or self._unplaced(),
            model=model or self.model or (self.stamp.config.model if self.stamp else "unknown"),
            model_hash="",
            dtype="float64" if weights["W_dec"].dtype == torch.float64 else "float32",
        )
        return SAE(config, **weights)

    def _unchanged(self) -> SAE | None:
        # The SAE that demur wrote there, bit by bit, if it is that still.
        if self.stamp is None or not set(self.stamp.config.shapes) <= set(self.weights):
            return None
        held = torch.promote_types(dtype := getattr(torch, self.stamp.config.dtype), torch.float32)
        weights = {n: self.weights[n].to(dtype).to(held) for n in self.stamp.config.shapes}
        if {n: tuple(w.shape) for n, w in weights.items()} != self.stamp.config.shapes:
            return None
        own = SAE(self.stamp.config, **weights)
        return own if own.hash == self.stamp.hash else None

    def _unplaced(self) -> str:
        where = f"was trained at {self.place!r}" if self.place else "does not say where in the model it belongs"
        raise SAEError(
            f"the {self.format} SAE at {self.path} {where}; expected the residual stream after a block. If it is that, say "
            f"which: demur convert {self.path} --site 14.resid_post --out DIR"
        )


def site_of(place: str) -> str | None:
    """Another library's name for a place, as a site; None unless it is the residual stream after a block.

    Known are TransformerLens's `blocks.14.hook_resid_post`, modules of transformers (`model.layers.14`),
    dictionary_learning's `resid_post_layer_14`, and our own.
    """
    for pattern, shift in PLACES:
        if (match := pattern.fullmatch(place)) and int(match[1]) + shift >= 0:
            return f"{int(match[1]) + shift}.resid_post"
    return None


def norms_of(W_dec: Tensor) -> Tensor:
    """The norm of each decoder row, in float64."""
    return torch.cat([part.double().norm(dim=1) for part in W_dec.split(PART)])


def even(norms: Tensor, share: float = EVEN) -> bool:
    """Whether decoder rows are of one norm, give or take this share; rows of zeros do not count."""
    some = norms[norms > 0]
    return len(some) == 0 or float(some.max() / some.min()) - 1 < share


def folded(theirs: Foreign) -> dict[str, Tensor]:
    """The weights in our conventions; float64 stays, all else becomes float32."""
    w = theirs.weights
    dtype = torch.float64 if w["W_dec"].dtype == torch.float64 else torch.float32
    before = norms = norms_of(w["W_dec"])
    threshold = w.get("threshold")
    if threshold is not None and theirs.by_norm:
        threshold = threshold.double() / torch.where(before > 0, before, 1)  # to the units of pre-activations
    if theirs.rule == "topk" and not theirs.by_norm and not even(norms):
        norms = torch.full_like(norms, theirs.scale)  # of the rows once scaled: 1 each
    norms = torch.where(norms > 0, norms / theirs.scale, 1)
    b_dec, b_enc = w["b_dec"].double() / theirs.scale, w["b_enc"].double()
    if not theirs.centred:
        b_enc = b_enc + torch.cat([b_dec @ part.double() for part in w["W_enc"].split(PART, dim=1)]) * theirs.scale
    found = {
        "W_enc": _scaled(w["W_enc"].T, theirs.scale * norms, dtype).T.contiguous(),
        "b_enc": b_enc * norms,
        "W_dec": _scaled(w["W_dec"], 1 / (theirs.scale * norms), dtype),
        "b_dec": b_dec,
    }
    if theirs.rule in THRESHOLDED and threshold is not None:
        found["threshold"] = threshold.double() * norms
    return {name: weight.to(dtype) for name, weight in found.items()}


def _scaled(rows: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    # Row by row; in parts, since a float64 copy of a wide SAE would be the largest thing in memory.
    parts = zip(rows.split(PART), by.split(PART), strict=True)
    return torch.cat([(part.double() * factor[:, None]).to(dtype) for part, factor in parts])
