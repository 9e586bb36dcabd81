"""Training an SAE on a stream of activations, after Gao et al., "Scaling and evaluating sparse autoencoders" (2024)."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from demur.activations.sample import SampleSettings, sample
from demur.activations.stream import ActivationStream
from demur.data.corpus import Sequences, Source, take
from demur.errors import FileError, SettingsError
from demur.files import replacing
from demur.models.load import LanguageModel, ModelSettings
from demur.progress import bar
from demur.sae.rules import RULES
from demur.sae.sae import SAE, SAEConfig

CPU = torch.device("cpu")


class SAESettings(ModelSettings):
    """The SAE, the text it learns from, and how it learns."""

    site: str = "14.resid_post"
    """Where the activations are read."""
    d_sae: int = Field(default=4608, gt=0)
    """Features."""
    k: int = Field(default=32, gt=0)
    """Active features per token."""
    rule: Literal["topk"] = "topk"
    """Activation rule."""
    text: tuple[Source, ...] = ()
    """Files and how many tokens to take of each."""
    sampled: SampleSettings | None = None
    """Text to sample from the model itself, added to the mixture."""
    length: int = Field(default=256, gt=1)
    """Longest sequence, in tokens."""
    held_out: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the sequences kept for measuring quality."""
    batch: int = Field(default=1024, gt=0)
    """Tokens per step of the optimiser."""
    buffer: int = Field(default=65_536, gt=0)
    """Tokens in the shuffle buffer."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of Adam; by default 2e-3 at 4,608 features, falling with the root of the width."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    decay: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps, at the end, in which it falls to zero."""
    dead_after: int = Field(default=100_000, gt=0)
    """A feature that was not active for so many tokens counts as dead."""
    dead_loss: float = Field(default=1 / 32, ge=0)
    """Weight of the dead-feature loss (Gao et al., appendix A.2)."""
    checkpoint_every: float = Field(default=60, ge=0)
    """Seconds between checkpoints."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the saved weights; the quality is measured on what was saved."""
    seed: int = 0
    """Seed of the order, the sampling and the weights."""

    def learning_rate(self) -> float:
        """The learning rate at its height (scaling with width: Gao et al., appendix A.3)."""
        return self.lr or 2e-3 * math.sqrt(4608 / self.d_sae)


def gather_text(lm: LanguageModel, settings: SAESettings, folder: Path) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences; tokenised and sampled once, then kept in the run as `text.safetensors`."""
    if not settings.text and settings.sampled is None:
        raise SettingsError("no text to train on; name files under `text`, or `sampled` prompts, in the config.")
    kept = folder / "text.safetensors"
    if not kept.is_file():
        rows = [row for source in settings.text for row in take(lm.tokenizer, source, settings.length, settings.seed)]
        if settings.sampled is not None:
            rows += sample(lm, settings.sampled, settings.length, settings.seed)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        text = Sequences.of([rows[i] for i in order])
        with replacing(kept) as tmp:
            save_file({"tokens": torch.from_numpy(text.tokens), "offsets": torch.from_numpy(text.offsets)}, tmp)
    loaded = load_file(kept)
    text = Sequences(loaded["tokens"].numpy(), loaded["offsets"].numpy())
    return text.split(len(text) - max(1, round(settings.held_out * len(text))))


class Trainer:
    """Parameters, optimiser and counters; `step` learns from one batch. Everything it holds is in a checkpoint.

    All of it is in float32, on the model's device, whatever the model's precision.
    """

    def __init__(self, d_model: int, settings: SAESettings, steps: int, device: torch.device = CPU) -> None:
        self.settings, self.steps = settings, steps
        # Drawn on the CPU, so that the seed means the same SAE everywhere.
        generator = torch.Generator().manual_seed(settings.seed)
        W_dec = F.normalize(torch.randn(settings.d_sae, d_model, generator=generator), dim=1).to(device)
        # The encoder starts as the decoder's transpose (Gao et al., appendix A.1): fewer features die.
        self.weights = {
            "W_enc": W_dec.t().contiguous().requires_grad_(),
            "b_enc": torch.zeros(settings.d_sae, device=device, requires_grad=True),
            "W_dec": W_dec.clone().requires_grad_(),
            "b_dec": torch.zeros(d_model, device=device, requires_grad=True),
        }
        self.optimiser = torch.optim.Adam(self.weights.values(), lr=settings.learning_rate(), fused=True)
        self.counters = {
            "step": torch.zeros((), dtype=torch.long),
            # Tokens since each feature was last active.
            "silent": torch.zeros(settings.d_sae, device=device, dtype=torch.long),
            "scale": torch.zeros((), device=device),  # of the input; 0 until the first batch is seen
        }

    @property
    def step_number(self) -> int:
        """Steps taken."""
        return int(self.counters["step"])

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Sets decoder bias (geometric median) and input scale (mean squared norm d_model) from a first sample."""
        centre = geometric_median(x)
        scale = math.sqrt(x.shape[1]) / (x - centre).pow(2).sum(1).mean().sqrt()
        self.counters["scale"] = scale
        self.weights["b_dec"].copy_(centre * scale)

    def step(self, x: Float[Tensor, "tokens d_model"]) -> dict[str, float]:
        """One step; gives `fvu` (share of variance unexplained in this batch) and `dead` (share of features)."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate() * self._schedule()
        x = x * self.counters["scale"]
        w = self.weights
        pre = torch.addmm(w["b_enc"], x - w["b_dec"], w["W_enc"])
        values, indices = RULES[self.settings.rule](pre, self.settings.k, None)
        error = x - F.embedding_bag(indices, w["W_dec"], per_sample_weights=values, mode="sum") - w["b_dec"]
        variance = (x - x.mean(0)).pow(2).sum()
        fvu = error.pow(2).sum() / variance
        dead = self.counters["silent"] > self.settings.dead_after
        loss = fvu + self.settings.dead_loss * self._dead_loss(pre, error.detach(), dead)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._keep_norms()
        self.optimiser.step()
        with torch.no_grad():
            w["W_dec"].copy_(F.normalize(w["W_dec"], dim=1))
            self.counters["silent"] += len(x)
            self.counters["silent"][indices[values > 0]] = 0
            self.counters["step"] += 1
        return {"fvu": fvu.item(), "dead": dead.float().mean().item()}

    def _dead_loss(self, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        # Gao et al., appendix A.2: the dead features try to explain what the live ones leave.
        count = int(dead.sum())
        if count == 0 or self.settings.dead_loss == 0:
            return error.new_zeros(())
        which = dead.nonzero()[:, 0]
        values, places = pre[:, which].topk(min(count, error.shape[1] // 2), dim=1)
        guess = F.embedding_bag(which[places], self.weights["W_dec"], per_sample_weights=values.relu(), mode="sum")
        return (error - guess).pow(2).sum() / error.pow(2).sum()

    @torch.no_grad()
    def _keep_norms(self) -> None:
        # Decoder rows stay on the unit sphere; the part of the gradient that points off it would only stir Adam.
        W_dec = self.weights["W_dec"]
        assert W_dec.grad is not None
        W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec

    def _schedule(self) -> float:
        done = self.step_number / max(1, self.steps)
        rise = min(1.0, (self.step_number + 1) / max(1.0, self.settings.warmup * self.steps))
        fall = min(1.0, (1 - done) / self.settings.decay) if self.settings.decay else 1.0
        return rise * fall

    def sae(self, lm: LanguageModel) -> SAE:
        """The SAE learnt so far, the input scale folded in: it takes and gives activations in the model's own units."""
        s, w = self.counters["scale"], self.weights
        config = SAEConfig.model_validate(
            {
                "d_model": lm.d_model,
                "d_sae": self.settings.d_sae,
                "k": self.settings.k,
                "rule": self.settings.rule,
                "site": self.settings.site,
                "model": lm.name,
                "model_hash": lm.hash,
                "dtype": self.settings.save_dtype,
            }
        )
        # relu(s (x − b/s) W + c) / s = relu((x − b/s) W + c/s): activations become lengths in the model's units.
        with torch.no_grad():
            parts = w["W_enc"].clone(), w["b_enc"] / s, w["W_dec"].clone(), w["b_dec"] / s
        dtype = getattr(torch, self.settings.save_dtype)
        return SAE(config, *(p.to(dtype).float() for p in parts))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but for the stream."""
        moments = {
            f"{key}.{name}": self.optimiser.state[weight][key].clone()
            for name, weight in self.weights.items()
            if weight in self.optimiser.state
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        plain = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return plain | {k: v.clone() for k, v in self.counters.items()} | moments

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up a state that `state` gave."""
        for name, weight in self.weights.items():
            weight.copy_(state[name])
            if f"step.{name}" in state:
                self.optimiser.state[weight] = {
                    key: state[f"{key}.{name}"].to(weight.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        for name, counter in self.counters.items():
            self.counters[name] = state[name].to(counter.device, copy=True)


def train(
    lm: LanguageModel,
    text: Sequences,
    settings: SAESettings,
    folder: Path,
    after_step: Callable[[Trainer], None] | None = None,
) -> SAE:
    """Trains on one pass over the text; a checkpoint in `folder` is taken up where it stood.

    Raises:
        FileError: a checkpoint that cannot be read.
    """
    stream = ActivationStream(lm, settings.site, text, settings.buffer, settings.seed)
    usable = int((text.lengths() - 1).sum())
    trainer = Trainer(lm.d_model, settings, steps=math.ceil(usable / settings.batch), device=lm.device)
    load_checkpoint(folder, trainer, stream)
    saved, begun, first = time.monotonic(), time.monotonic(), trainer.step_number
    with bar("training", trainer.steps, trainer.step_number) as progress:
        # Checkpoints fall between refills, where the buffer is at its smallest.
        while stream.refill():
            if trainer.step_number == 0:
                trainer.start(stream.kept)
            for x in stream.batches(settings.batch):
                figures = trainer.step(x)
                rate = (trainer.step_number - first) * settings.batch / (time.monotonic() - begun)
                progress.step(
                    figures=f"FVU {figures['fvu']:.3f}  dead {100 * figures['dead']:.1f} %  {rate:,.0f} tokens/s"
                )
                if after_step is not None:
                    after_step(trainer)
            if time.monotonic() - saved > settings.checkpoint_every:
                save_checkpoint(folder, trainer, stream)
                saved = time.monotonic()
    save_checkpoint(folder, trainer, stream)
    return trainer.sae(lm)


CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(folder: Path, trainer: Trainer, stream: ActivationStream) -> None:
    """Writes trainer and stream into one file, which replaces the one before when it is complete."""
    position = {
        "stream.groups_done": torch.tensor(stream.groups_done),
        "stream.refills": torch.tensor(stream.refills),
        "stream.norm_limit": torch.tensor(stream.norm_limit, dtype=torch.float64),
        "stream.kept": stream.kept.contiguous(),
    }
    with replacing(folder / CHECKPOINT) as tmp:
        save_file(trainer.state() | position, tmp)


def load_checkpoint(folder: Path, trainer: Trainer, stream: ActivationStream) -> None:
    """Takes up the folder's checkpoint, if it has one."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise FileError(f"{path} cannot be read ({error}); delete it to train from the beginning.") from error
    trainer.restore(state)
    stream.groups_done = int(state["stream.groups_done"])
    stream.refills = int(state["stream.refills"])
    stream.norm_limit = float(state["stream.norm_limit"])
    stream.kept = state["stream.kept"].to(stream.lm.device)


def geometric_median(x: Float[Tensor, "tokens d_model"], rounds: int = 20) -> Float[Tensor, " d_model"]:
    """The point with the least summed distance to all others (Weiszfeld's algorithm)."""
    centre = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - centre).norm(dim=1).clamp_min(1e-8)
        centre = (weight[:, None] * x).sum(0) / weight.sum()
    return centre
