"""What each sensor knows of one batch: its state is updated as tokens come, in one pass or in chunks.

It sums in float32 at least: a threshold was set on such sums, and those of a model in half precision keep two or three
digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import gelu

from demur.records import AttentionSensor, CastSensor, FeatureSensor, Fired, GuardSensor, Policy, ProbeSensor, Reader
from demur.sae.sae import SAE
from demur.steering.guards import GuardState


@dataclass(frozen=True)
class Seen:
    """Tokens at one site, in order of position within each row; features are encoded once for all that read them."""

    x: Float[Tensor, "tokens d_model"]
    row: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    sae: SAE | None
    features: Int[Tensor, " n"]
    """The SAE's features that somebody reads here."""

    @cached_property
    def f(self) -> Float[Tensor, "tokens n"]:
        """Their activations."""
        assert self.sae is not None
        return self.sae.read(self.x, self.features)

    @staticmethod
    def joined(parts: Sequence["Seen"]) -> "Seen":
        """What came in several chunks, as if it had come in one."""
        first = parts[0]
        x, row, position = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "row", "position"))
        made = Seen(x, row, position, first.sae, first.features)
        if first.sae is not None and len(first.features):
            made.__dict__["f"] = torch.cat([part.f for part in parts])  # as in `where`
        return made

    def of(self, rows: Bool[Tensor, " batch"]) -> "Seen":
        """The tokens of some rows."""
        return self.where(rows[self.row])

    def where(self, mine: Bool[Tensor, " tokens"]) -> "Seen":
        """Some of the tokens."""
        if mine.all():
            return self
        made = Seen(self.x[mine], self.row[mine], self.position[mine], self.sae, self.features)
        if self.sae is not None and len(self.features):
            made.__dict__["f"] = self.f[mine]  # where the cached property keeps it
        return made


class Pool:
    """Values of each row's tokens, pooled: max, mean or last."""

    def __init__(self, how: str, rows: int, width: int, like: Tensor, start: float = 0.0) -> None:
        # Activations are never negative, so 0 is the start of their maximum as of a sum; the stream's has none.
        self.how, self.start = how, start
        self.values = torch.full((rows, width), start, device=like.device, dtype=wide(like))
        self.seen = torch.zeros(rows, 1, device=like.device, dtype=wide(like))
        self.where = torch.full((rows, width), -1, device=like.device, dtype=torch.long)
        """max: the position that each value is from; -1 where nothing was above 0."""

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.values[rows], self.seen[rows], self.where[rows] = self.start, 0, -1

    def update(self, values: Float[Tensor, "tokens n"], seen: Seen) -> None:
        """Takes in tokens."""
        values, row = values.to(self.values), seen.row
        if self.how == "max":
            before = self.values.clone()
            self.values.scatter_reduce_(0, row[:, None].expand_as(values), values, "amax")
            token, column = ((values > before[row]) & (values == self.values[row])).nonzero(as_tuple=True)
            self.where[row[token], column] = seen.position[token]
        elif self.how == "mean":
            self.values.index_add_(0, row, values)
        else:
            last = torch.cat([row[1:] != row[:-1], torch.ones_like(row[:1], dtype=torch.bool)])
            self.values[row[last]] = values[last]
        self.seen.index_add_(0, row, torch.ones_like(values[:, :1]))

    def read(self) -> Float[Tensor, "rows n"]:
        """The pooled values so far."""
        return self.values / self.seen.clamp_min(1) if self.how == "mean" else self.values

    def running(self, values: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """What is pooled of one row's values up to each."""
        values = values.to(self.values)
        if self.how == "max":
            return values.cummax(0).values.clamp_min(self.start)
        if self.how == "mean":
            return values.cumsum(0) / torch.arange(1, len(values) + 1, device=values.device)[:, None]
        return values


class FeatureState:
    """A sparse sensor on one batch."""

    def __init__(self, sensor: FeatureSensor, features: Tensor, rows: int, like: Tensor) -> None:
        self.sensor = sensor
        mine = torch.tensor(sensor.features, device=like.device)
        self.columns = (mine[:, None] == features).int().argmax(1)
        self.weights = torch.tensor(sensor.weights, device=like.device, dtype=wide(like))
        self.pool = Pool(sensor.pooling, rows, len(sensor.features), like)

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.pool.forget(rows)

    def update(self, seen: Seen) -> None:
        """Takes in tokens."""
        self.pool.update(seen.f[:, self.columns], seen)

    def each(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of every token by itself."""
        return (seen.f[:, self.columns].to(self.weights) * self.weights).sum(1) + self.sensor.bias

    def scores(self) -> Float[Tensor, " rows"]:
        """`bias + Σ weight · pooled activation`."""
        return self._of(self.pool.read())

    def running(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of one row up to each of its tokens."""
        return self._of(self.pool.running(seen.f[:, self.columns]))

    def _of(self, pooled: Tensor) -> Tensor:
        # Row by row sums, not a matrix product, whose rounding depends on how many rows are read together.
        return (pooled * self.weights).sum(1) + self.sensor.bias

    def fired(self, row: int) -> tuple[Fired, ...]:
        """The features that were active on a row."""
        found = zip(self.sensor.features, self.pool.read()[row].tolist(), self.pool.where[row].tolist(), strict=True)
        return tuple(
            Fired(feature=f, role="sensor", value=v, site=self.sensor.site, position=at if at >= 0 else None)
            for f, v, at in found
            if v > 0
        )


class ProbeState:
    """A dense sensor on one batch."""

    def __init__(self, sensor: ProbeSensor, vector: Tensor, rows: int, like: Tensor) -> None:
        self.sensor, self.vector = sensor, vector.to(like.device, wide(like))
        self.pool = Pool(sensor.pooling, rows, len(vector), like, -torch.inf if sensor.pooling == "max" else 0.0)

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.pool.forget(rows)

    def update(self, seen: Seen) -> None:
        """Takes in tokens."""
        self.pool.update(seen.x, seen)

    def each(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of every token by itself."""
        return (seen.x.to(self.vector) * self.vector).sum(1) + self.sensor.bias

    def scores(self) -> Float[Tensor, " rows"]:
        """`bias + v · pooled stream`; of a row of which nothing was read, the bias alone."""
        pooled = torch.where(self.pool.seen > 0, self.pool.read(), 0)
        return (pooled * self.vector).sum(1) + self.sensor.bias

    def running(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of one row up to each of its tokens."""
        return (self.pool.running(seen.x) * self.vector).sum(1) + self.sensor.bias

    def fired(self, row: int) -> tuple[Fired, ...]:
        """No features: the direction is the policy's own."""
        return ()


class CastState:
    """CAST's condition: the mean of the stream over a row's tokens, and its cosine with its projection."""

    def __init__(self, sensor: CastSensor, vector: Tensor, rows: int, like: Tensor) -> None:
        self.sensor = sensor
        v = vector.to(like.device, wide(like))
        self.unit = v / v.norm()
        self.pool = Pool("mean", rows, len(v), like)

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.pool.forget(rows)

    def update(self, seen: Seen) -> None:
        """Takes in tokens."""
        self.pool.update(seen.x, seen)

    def scores(self) -> Float[Tensor, " rows"]:
        """`sign · cos(h, tanh(P h))`; of a row of which nothing was read, the lowest there is."""
        return torch.where(self.pool.seen[:, 0] > 0, self._of(self.pool.read()), -torch.inf)

    def running(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of one row up to each of its tokens."""
        return self._of(self.pool.running(seen.x))

    def _of(self, h: Tensor) -> Tensor:
        projected = torch.tanh((h * self.unit).sum(1, keepdim=True) * self.unit)
        return self.sensor.sign * torch.cosine_similarity(h, projected, dim=1)

    def fired(self, row: int) -> tuple[Fired, ...]:
        """No features: the direction is the policy's own."""
        return ()


class AttentionState:
    """An attention probe on one batch; the softmax over a row's tokens is kept running, as they come."""

    def __init__(self, sensor: AttentionSensor, arrays: Mapping[str, Tensor], rows: int, like: Tensor) -> None:
        self.sensor = sensor
        self.query, self.value, self.value_bias, self.out = (
            arrays[name].to(like.device, wide(like)) for name in ("query", "value", "value_bias", "out")
        )
        heads = len(self.query)
        self.peak = self.query.new_full((rows, heads), -torch.inf)
        self.total = self.query.new_zeros(rows, heads)
        self.sums = self.query.new_zeros(rows, heads, len(self.value) // heads)

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.peak[rows], self.total[rows], self.sums[rows] = -torch.inf, 0, 0

    def update(self, seen: Seen) -> None:
        """Takes in tokens."""
        x, row = seen.x.to(self.query), seen.row
        logit = x @ self.query.T
        values = (x @ self.value.T + self.value_bias).view(len(x), *self.sums.shape[1:])
        peak = self.peak.scatter_reduce(0, row[:, None].expand_as(logit), logit, "amax")
        # What was summed below a lower peak counts for less; where nothing new was seen, infinity less infinity.
        fade = torch.where(peak == self.peak, 1.0, (self.peak - peak).exp())
        weight = (logit - peak[row]).exp()
        self.total = (self.total * fade).index_add_(0, row, weight)
        self.sums = (self.sums * fade[..., None]).index_add_(0, row, weight[..., None] * values)
        self.peak = peak

    def each(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of every token by itself."""
        values = seen.x.to(self.query) @ self.value.T + self.value_bias
        return (gelu(values) * self.out).sum(1) + self.sensor.bias

    def scores(self) -> Float[Tensor, " rows"]:
        """`bias + w · gelu(z)`; of a row of which nothing was read, as if all it reads were 0."""
        z = (self.sums / torch.where(self.total > 0, self.total, 1)[..., None]).flatten(1)
        return (gelu(z) * self.out).sum(1) + self.sensor.bias

    def running(self, seen: Seen) -> Float[Tensor, " tokens"]:
        """The score of one row up to each of its tokens."""
        x = seen.x.to(self.query)
        values = (x @ self.value.T + self.value_bias).view(len(x), *self.sums.shape[1:])
        # In double precision, so that the first tokens' weights are not lost below the peak of all; some 700 below it they
        # are, and count for nothing.
        logit = (x @ self.query.T).double()
        weight = (logit - logit.amax(0)).exp()[..., None]
        z = (weight * values).cumsum(0) / weight.cumsum(0).clamp_min(torch.finfo(weight.dtype).tiny)
        return (gelu(z.to(values).flatten(1)) * self.out).sum(1) + self.sensor.bias

    def fired(self, row: int) -> tuple[Fired, ...]:
        """No features: what it reads is the policy's own."""
        return ()


ReaderState = FeatureState | ProbeState | AttentionState | CastState | GuardState


def state_of(sensor: Reader, policy: Policy, features: Mapping[str, Tensor], rows: int, like: Tensor) -> ReaderState:
    """The state of a sensor that a policy names, on a batch of so many rows; `features` as in `wanted_features`."""
    if isinstance(sensor, GuardSensor):
        return GuardState(rows, like, wide(like))
    if isinstance(sensor, FeatureSensor):
        return FeatureState(sensor, features[sensor.site], rows, like)
    if isinstance(sensor, AttentionSensor):
        parts = ("query", "value", "value_bias", "out")
        arrays = {part: torch.as_tensor(policy.vector(f"{sensor.vector}.{part}")) for part in parts}
        return AttentionState(sensor, arrays, rows, like)
    vector = torch.as_tensor(policy.vector(sensor.vector))
    if isinstance(sensor, ProbeSensor):
        return ProbeState(sensor, vector, rows, like)
    return CastState(sensor, vector, rows, like)


def wide(like: Tensor) -> torch.dtype:
    """The precision of a gate's sums: the model's, but no less than float32."""
    return torch.promote_types(like.dtype, torch.float32)
