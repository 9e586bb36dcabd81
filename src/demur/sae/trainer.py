"""One step of training after another: the parameters of one SAE, its optimiser and counters.

The gradients are written out. The encoder's forward product is the only one that sees all features, a piece of the batch
at a time (`sparse.rows_at_once`); everything after it touches the active ones, and no graph is kept.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from demur.errors import SAEError, TrainingError
from demur.models.load import LanguageModel
from demur.sae.learning import LEARNING, LearningRule, joined_rows
from demur.sae.ranks import ALONE, Ranks
from demur.sae.rules import COUNTED
from demur.sae.sae import SAE, SAEConfig
from demur.sae.settings import SAESettings
from demur.sae.sparse import Active, ByFeature, by_feature, decode, dots, product, rows_at_once, sums

CPU = torch.device("cpu")
PART = 4096
"""Tokens of the first sample that are looked at together."""
SAMPLE = 256
"""Tokens whose pre-activations a rule looks at before it starts."""


class Figures(NamedTuple):
    """Of one batch; tensors, so that a GPU is not waited for where nobody looks."""

    fvu: Tensor
    """Share of the variance that the reconstruction leaves unexplained."""
    dead: Tensor
    """Share of the features that are dead."""
    l0: Tensor
    """Active features per token."""


class Trainer:
    """Parameters, optimiser and counters; `step` learns from one batch. Everything it holds is in a checkpoint.

    All of it is in float32, on the model's device, whatever the model's precision. `W_enc` is held as `[d_sae, d_model]`,
    so that both matrices' gradients are sums over rows.
    """

    def __init__(
        self, d_model: int, settings: SAESettings, steps: int, device: torch.device = CPU, ranks: Ranks = ALONE
    ) -> None:
        self.settings, self.steps, self.ranks = settings, steps, ranks
        # Drawn on the CPU, so that the seed means the same SAE everywhere.
        generator = torch.Generator().manual_seed(settings.seed)
        W_dec = F.normalize(torch.randn(settings.d_sae, d_model, generator=generator), dim=1).to(device)
        self.rule: LearningRule = LEARNING[settings.rule](settings, d_model, device)
        # The encoder starts as the decoder's transpose (Gao et al., appendix A.1): fewer features die.
        self.weights = {
            "W_enc": W_dec.clone(),
            "b_enc": torch.zeros(settings.d_sae, device=device),
            "W_dec": W_dec,
            "b_dec": torch.zeros(d_model, device=device),
        } | self.rule.learnt
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
        self._check_width(x)
        x = x.float()
        w, n = self.weights, torch.tensor(float(len(x)), device=x.device)
        centre, squares = geometric_median(x, self.ranks), torch.zeros((), device=x.device)
        for part in x.split(PART):
            squares += (part - centre).pow(2).sum()
        self.ranks.sum(squares, n)
        self.counters["scale"] = math.sqrt(x.shape[1]) / (squares / n).sqrt()
        w["b_dec"].copy_(centre * self.counters["scale"])
        sample = self.ranks.all(x[: max(1, SAMPLE // self.ranks.size)])
        self.rule.start(product(sample * self.counters["scale"] - w["b_dec"], w["W_enc"], w["b_enc"]), w["b_enc"])

    @torch.no_grad()
    def step(self, x: Float[Tensor, "tokens d_model"]) -> Figures:
        """One step on this process's share of a batch.

        Raises:
            SAEError: activations of another width.
        """
        self._check_width(x)
        w = self.weights
        x = x.float() * self.counters["scale"]
        tokens, variance = self._spread(x)
        x -= w["b_dec"]
        active = self._activate(x, tokens)
        error = x - decode(active, w["W_dec"])
        squares = error.pow(2).sum()
        self.ranks.sum(squares)
        # A batch that is one token over and over has nothing to explain.
        per_error = torch.where(variance > 0, -2 / variance, 0)
        self._differentiate(x, active, error * per_error, tokens, variance)
        dead = self.counters["silent"] > self.settings.dead_after
        if self.settings.dead_loss > 0 and bool(dead.any()):
            self._revive(x, error, squares, dead.nonzero()[:, 0])
        self._descend()
        counts = self._count(active, tokens)
        return Figures(squares / variance, dead.float().mean(), counts / tokens)

    def check(self) -> None:
        """Raises TrainingError if a weight is no number any more. Not asked at every step: a GPU would be waited for."""
        if not all(bool(weight.isfinite().all()) for weight in self.weights.values()):
            raise TrainingError(
                f"the training diverged by step {self.step_number}: its weights are no numbers any more; give a lower --lr, "
                "and another --run."
            )

    def _spread(self, x: Tensor) -> tuple[int, Tensor]:
        # Tokens of the whole batch, and their summed squared distance to their mean.
        total, n = x.sum(0), torch.tensor(float(len(x)), device=x.device)
        self.ranks.sum(total, n)
        variance = (x - total / n).pow(2).sum()
        self.ranks.sum(variance)
        return int(n), variance

    def _activate(self, x: Tensor, tokens: int) -> Active:
        size = rows_at_once(self.settings.d_sae, x.device)
        while True:
            parts = [
                self.rule.pick(product(part, self.weights["W_enc"], self.weights["b_enc"])) for part in x.split(size)
            ]
            active = self.rule.settle(joined_rows(parts), tokens, self.ranks)
            if active is not None:
                return active

    def _differentiate(self, x: Tensor, active: Active, by_output: Tensor, tokens: int, variance: Tensor) -> None:
        w = self.weights
        entries = ByFeature.of(active, self.settings.d_sae)
        by_value = dots(active, by_output, w["W_dec"])
        by_pre = self.rule.gradients(active, entries, by_value, tokens, variance, self.ranks)
        w["W_dec"].grad = by_feature(entries, active.values, by_output)
        w["W_enc"].grad = by_feature(entries, by_pre, x)
        w["b_enc"].grad = sums(entries, by_pre)
        w["b_dec"].grad = by_output.sum(0)

    def _revive(self, x: Tensor, error: Tensor, squares: Tensor, dead: Int[Tensor, " dead"]) -> None:
        """Adds the gradient of the dead-feature loss: the dead features try to explain what the live ones leave.

        Gao et al., appendix A.2, with at most `d_model / 2` dead features of a token at once; what is left is a constant
        to it. Dense, but only as wide as there are dead features.
        """
        w = self.weights
        W_enc, b_enc, W_dec = w["W_enc"][dead], w["b_enc"][dead], w["W_dec"][dead]
        by_W_enc, by_b_enc, by_W_dec = (torch.zeros_like(t) for t in (W_enc, b_enc, W_dec))
        W_dec_t = W_dec.t().contiguous()
        size = rows_at_once(len(dead), x.device)
        for part, left in zip(x.split(size), error.split(size), strict=True):
            f = largest(product(part, W_enc, b_enc).relu_(), x.shape[1] // 2)
            by_guess = (left - product(f, W_dec_t)) * (-2 * self.settings.dead_loss / squares)
            by_f = product(by_guess, W_dec).mul_(f > 0)
            by_W_dec += product(f.t(), by_guess.t())
            by_W_enc += product(by_f.t(), part.t())
            by_b_enc += by_f.sum(0)
        for name, by in (("W_enc", by_W_enc), ("b_enc", by_b_enc), ("W_dec", by_W_dec)):
            gradient = w[name].grad
            assert gradient is not None
            gradient.index_add_(0, dead, by)

    def _descend(self) -> None:
        w = self.weights
        gradients = {name: weight.grad for name, weight in w.items() if weight.grad is not None}
        # The decoder's bias is also taken off the encoder's input.
        gradients["b_dec"] -= gradients["b_enc"] @ w["W_enc"]
        self.ranks.sum(*gradients.values())
        fused(along_the_sphere, w["W_dec"].device.type)(gradients["W_dec"], w["W_dec"])
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate() * self._schedule()
        self.optimiser.step()
        fused(onto_the_sphere, w["W_dec"].device.type)(w["W_dec"])

    def _count(self, active: Active, tokens: int) -> Tensor:
        fired = torch.zeros_like(self.weights["b_enc"])
        fired.scatter_add_(0, active.features, (active.values > 0).float())
        self.ranks.sum(fired)
        silent = self.counters["silent"]
        silent += tokens
        silent.masked_fill_(fired > 0, 0)
        self.counters["step"] += 1
        return fired.sum()

    def _schedule(self) -> float:
        done = self.step_number / max(1, self.steps)
        rise = min(1.0, (self.step_number + 1) / max(1.0, self.settings.warmup * self.steps))
        fall = min(1.0, (1 - done) / self.settings.decay) if self.settings.decay else 1.0
        return rise * max(0.0, fall)

    def _check_width(self, x: Tensor) -> None:
        width = len(self.weights["b_dec"])
        if x.shape[1] != width:
            raise SAEError(f"the activations are {x.shape[1]} wide, but the SAE in training takes {width}.")

    def sae(self, lm: LanguageModel, site: str) -> SAE:
        """The SAE learnt so far, the input scale folded in: it takes and gives activations in the model's own units."""
        s, w, settings = self.counters["scale"], self.weights, self.settings
        config = SAEConfig(
            d_model=lm.d_model,
            d_sae=settings.d_sae,
            k=settings.k if settings.rule in COUNTED else None,
            rule=settings.rule,
            site=site,
            model=lm.name,
            model_hash=lm.hash,
            dtype=settings.save_dtype,
        )
        # relu(s (x − b/s) W + c) / s = relu((x − b/s) W + c/s): activations become lengths in the model's units, and
        # thresholds with them.
        parts = {
            "W_enc": w["W_enc"].t().contiguous(),
            "b_enc": w["b_enc"] / s,
            "W_dec": w["W_dec"].clone(),
            "b_dec": w["b_dec"] / s,
        }
        threshold = self.rule.threshold()
        if threshold is not None:
            parts["threshold"] = threshold / s
        dtype = getattr(torch, settings.save_dtype)
        return SAE(config, **{name: part.to(dtype).float() for name, part in parts.items()})

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but for the stream."""
        moments = {
            f"{key}.{name}": self.optimiser.state[weight][key].clone()
            for name, weight in self.weights.items()
            if weight in self.optimiser.state
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        plain = {name: weight.clone() for name, weight in self.weights.items()}
        counters = {name: value.clone() for name, value in (self.counters | self._of_the_rule()).items()}
        return plain | counters | moments

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up a state that `state` gave.

        Raises:
            SAEError: it is that of an SAE of another size or rule.
        """
        for name, weight in self.weights.items():
            if name not in state or state[name].shape != weight.shape:
                has = tuple(state[name].shape) if name in state else "missing"
                raise SAEError(f"{name} in the checkpoint is {has}, but this training's is {tuple(weight.shape)}.")
            weight.copy_(state[name])
            if f"step.{name}" in state:
                self.optimiser.state[weight] = {
                    key: state[f"{key}.{name}"].to(weight.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        for name, counter in self.counters.items():
            self.counters[name] = state[name].to(counter.device, copy=True)
        for name, counter in self.rule.counters.items():
            if f"rule.{name}" not in state:
                raise SAEError(f"the checkpoint is not of a training with the rule {self.settings.rule}.")
            self.rule.counters[name] = state[f"rule.{name}"].to(counter.device, copy=True)

    def _of_the_rule(self) -> dict[str, Tensor]:
        return {f"rule.{name}": value for name, value in self.rule.counters.items()}


@functools.cache
def fused(function: Callable[..., None], device: str) -> Callable[..., None]:
    """A function of a few passes over a matrix: compiled into one on a GPU; a CPU need not have a compiler."""
    return torch.compile(function, dynamic=True) if device == "cuda" else function


def along_the_sphere(gradient: Tensor, W_dec: Tensor) -> None:
    """Takes off what points off the unit sphere, on which decoder rows stay: it would only stir Adam."""
    gradient.addcmul_((gradient * W_dec).sum(1, keepdim=True), W_dec, value=-1)


def onto_the_sphere(W_dec: Tensor) -> None:
    """Gives each row norm 1."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


def largest(f: Float[Tensor, "tokens n"], k: int) -> Float[Tensor, "tokens n"]:
    """`f`, non-negative, with all but the k largest of each row set to 0, in place."""
    if f.shape[1] > k:
        # Seldom are so many of the dead positive at once: the rows where they are are sorted, and no others.
        rows = ((f > 0).sum(1) > k).nonzero()[:, 0]
        if len(rows):
            values, places = f[rows].topk(k, dim=1, sorted=False)
            f[rows] = torch.zeros_like(f[rows]).scatter_(1, places, values)
    return f


def geometric_median(
    x: Float[Tensor, "tokens d_model"], ranks: Ranks = ALONE, rounds: int = 20
) -> Float[Tensor, " d_model"]:
    """The point with the least summed distance to all others (Weiszfeld's algorithm), of all processes' sample."""
    centre = torch.zeros_like(x[0])
    for round_ in range(rounds + 1):
        total, weights = torch.zeros_like(x[0]), x.new_zeros(())
        for part in x.split(PART):  # or the differences would be as large as the sample
            # From the mean.
            weight = 1 / (part - centre).norm(dim=1).clamp_min(1e-8) if round_ else x.new_ones(len(part))
            total += weight @ part
            weights += weight.sum()
        ranks.sum(total, weights)
        centre = total / weights
    return centre
