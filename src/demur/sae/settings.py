"""The settings of a training: the SAE, the text it learns from, and how it learns."""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from demur.activations.sample import SampleSettings
from demur.data.corpus import Source
from demur.models.load import ModelSettings
from demur.sae.rules import RuleName


class SAESettings(ModelSettings):
    """The SAE, the text it learns from, and how it learns."""

    site: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
        Field(min_length=1),
    ] = ("14.resid_post",)
    """Where the activations are read; several give an SAE each, from one pass over the text."""
    d_sae: int = Field(default=4608, gt=0)
    """Features."""
    k: int = Field(default=32, gt=0)
    """Active features per token: with topk at most, with batchtopk and jumprelu on average; relu only starts from it."""
    rule: RuleName = "topk"
    """Activation rule: topk, batchtopk, jumprelu or relu."""
    sparsity: float | None = Field(default=None, gt=0)
    """Weight of the sparsity loss of jumprelu (by default 1) and relu (by default 5); see `sae.learning`."""
    bandwidth: float = Field(default=0.1, gt=0)
    """How near a threshold jumprelu's pseudo-derivatives look, where activations have a mean squared norm of d_model."""
    text: tuple[Source, ...] = ()
    """Files and how many tokens to take of each."""
    sampled: SampleSettings | None = None
    """Text to sample from the model itself, added to the mixture."""
    length: int = Field(default=256, gt=1)
    """Longest sequence, in tokens."""
    held_out: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the sequences kept for measuring quality."""
    cache: str | None = None
    """Folder in which to keep the activations, for another training on the same text, model and sites."""
    batch: int = Field(default=1024, gt=0)
    """Tokens per step of the optimiser, of all processes together."""
    buffer: int = Field(default=65_536, gt=0)
    """Tokens in the shuffle buffer of each process."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of Adam; by default 3.5e-3 at 4,608 features, falling with the root of the width."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    decay: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps, at the end, in which it falls to zero."""
    dead_after: int = Field(default=40_000, gt=0)
    """A feature that was not active for so many tokens counts as dead."""
    dead_loss: float = Field(default=1 / 32, ge=0)
    """Weight of the dead-feature loss (Gao et al., appendix A.2)."""
    finetune_tokens: int = Field(default=0, ge=0)
    """Tokens to fine-tune on through the model at the end (`sae.finetune`); a run killed there does it again."""
    checkpoint_every: float = Field(default=60, ge=0)
    """Seconds between checkpoints."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the saved weights; the quality is measured on what was saved."""
    seed: int = 0
    """Seed of the order, the sampling and the weights."""

    @field_validator("site")
    @classmethod
    def _each_site_once(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sites)) != len(sites):
            raise ValueError("a site may be given once")
        return sites

    def learning_rate(self) -> float:
        """The learning rate at its height (scaling with width: Gao et al., appendix A.3)."""
        return self.lr or 3.5e-3 * math.sqrt(4608 / self.d_sae)
