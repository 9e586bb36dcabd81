"""Sensing: what reads harm off prompts, fitted on training prompts.

Two readings of one site are made and summed: a logistic model of a few named features, and an attention probe of the
stream, which is not made of features. The first says in words what it saw; the second tells a harmful request from one
that only looks like it, where the first is at a loss.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from demur.data.categories import kind_of
from demur.evaluation.attacks.wrappers import WRAPPED
from demur.features.attention import AttentionProbe, fit_attention
from demur.features.effect import Bench
from demur.features.held_out import beside_a_probe, held_out
from demur.features.reading import Streams, read_streams
from demur.features.sensors import RARE, fit, weights_of
from demur.features.settings import FindSettings
from demur.progress import bar
from demur.records import (
    AttentionSensor,
    Feature,
    FeatureSensor,
    HeldOut,
    JoinedSensor,
    Kind,
    Pooling,
    Prompt,
    Sensor,
)

FEWEST = 1000
"""Training prompts below which there is no attention probe, which then reads worse than features do, and none is wrapped."""
STREAMS = "streams.safetensors"
VECTOR = "attention"
"""Name of the probe's arrays in the file of vectors."""
APART = 10
"""One family of prompts in so many is kept apart, to weigh the two readings by."""
LEAST = 0.15
"""Least spread of what the features add to a score, relative to that of what the probe adds: they name what was read, and
on validation prompts of other sources the sum tells harm better with them (decision 14)."""
ENOUGH, PER_KIND = 20, 16
"""Prompts from which a kind of harm can be learnt, and features that read it."""
OF_KINDS = 0.003
"""Inverse strength of the L2 penalty of the model that chooses them."""
PIECE = 8192
"""Tokens encoded at a time."""


@dataclass(frozen=True)
class Sensed:
    """What reads harm, as a `FeatureSet` holds it."""

    features: list[Feature]
    bias: float = 0.0
    """Of the features' logistic model."""
    sensor: Sensor | None = None
    kinds: tuple[Kind, ...] = ()
    arrays: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[HeldOut, ...] = ()


def sense(
    bench: Bench,
    rows: Sequence[Prompt],
    sources: Sequence[str],
    settings: FindSettings,
    folder: Path | None = None,
) -> Sensed:
    """Readings of harm fitted to `rows`: training prompts, harmful and benign; `sources` says where each comes from.

    What is read of them, most of the work, is kept in `folder` (`STREAMS`, some 1.2 kB a token).
    """
    count, pooling, seed = settings.sensors, settings.pooling, settings.seed
    attention = settings.attention and len(rows) >= FEWEST
    harmful = [row.label == "harmful" for row in rows]
    groups = [f"{source} {row.kind}" for source, row in zip(sources, rows, strict=True)]
    kept = folder / STREAMS if folder else None
    streams = read_streams(bench.lm, bench.sae.config.site, [row.conversation for row in rows], kept=kept)
    pooled = pooled_features(bench, streams, pooling)
    reading = fit(pooled, harmful, groups, count)
    levels = pooled[:, reading.features].amax(0).tolist()
    features = [
        Feature(id=f, role="sensor", level=level, scores={"weight": weight, "auc": auc})
        for f, level, weight, auc in zip(reading.features, levels, reading.weights, reading.areas, strict=True)
    ]
    found: tuple[HeldOut, ...] = ()
    if settings.held_out:
        # A wrapped request is another source's too, and would stay when that is left out.
        bare = [i for i, source in enumerate(sources) if source != WRAPPED]
        told = ([harmful[i] for i in bare], [sources[i] for i in bare], [groups[i] for i in bare])
        found = beside_a_probe(pooled[bare], streams.pooled("mean")[bare], *told, count, seed)
        if attention:
            # What is left out of, and fitted to, are rows of the streams; their numbers stand for them.
            numbers = torch.tensor(bare, dtype=torch.float64)[:, None]
            by_attention = partial(_attention_on, streams, seed)
            found += (held_out("attention probe", by_attention, numbers, *told, seed),)
    kinds = read_kinds(bench.sae.config.site, pooled, rows, pooling)
    if not attention:
        return Sensed(features, reading.bias, kinds=kinds, held_out=found)
    shares, bias = _weighed(streams, pooled, rows, harmful, groups, count, seed)
    probe = fit_attention(streams, harmful, groups, range(len(rows)), seed=seed)
    site = bench.sae.config.site
    by_features = FeatureSensor(
        site=site, features=tuple(reading.features), weights=tuple(reading.weights), bias=reading.bias, pooling=pooling
    )
    by_probe = AttentionSensor(site=site, vector=VECTOR, bias=probe.bias)
    sensor = JoinedSensor(name="harm", rule="sum", of=(by_probe, by_features), weights=shares, bias=bias)
    arrays = {f"{VECTOR}.{name}": array for name, array in probe.arrays().items()}
    return Sensed(features, reading.bias, sensor, kinds, arrays, found)


def read_kinds(
    site: str, pooled: Float[Tensor, "prompts d_sae"], rows: Sequence[Prompt], pooling: Pooling
) -> tuple[Kind, ...]:
    """What reads which kind of harm a harmful prompt is of: a few features each, all against all.

    One multinomial model chooses each kind's features; a logistic model of those alone, with the kind and the rest
    weighing alike, is what reads it. Kinds with few prompts are left out, and there are none where only one is left.
    """
    named = [kind_of(row.source, row.category, row.prompt or "") if row.label == "harmful" else None for row in rows]
    names = [kind.name if kind and kind.group == "harm" and kind.name != "unspecified" else "" for kind in named]
    counts = Counter(name for name in names if name)
    kept = sorted(name for name, n in counts.items() if n >= ENOUGH)
    if len(kept) < 2:
        return ()
    mine = [i for i, name in enumerate(names) if name in kept]
    y, x = np.array([names[i] for i in mine]), pooled[mine].numpy()
    usual = np.flatnonzero((x > 0).mean(0) > RARE)
    scale = x.std(0) + 1e-6
    found = []
    with threadpool_limits(1):
        whole = LogisticRegression(C=OF_KINDS, max_iter=500).fit(x[:, usual] / scale[usual], y)
        for name in kept:
            # Of two kinds, sklearn has one row of coefficients: the second's.
            row = whole.coef_[0] * (1 if name == kept[1] else -1) if len(kept) == 2 else whole.coef_[kept.index(name)]
            chosen = usual[np.argsort(-row, kind="stable")[:PER_KIND]]
            model = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced").fit(
                x[:, chosen] / scale[chosen], y == name
            )
            weights = tuple(float(w) for w in model.coef_[0] / scale[chosen])
            sensor = FeatureSensor(
                name=name,
                site=site,
                features=tuple(chosen.tolist()),
                weights=weights,
                bias=float(model.intercept_[0]),
                pooling=pooling,
            )
            found.append(Kind(name=name, sensor=sensor))
    return tuple(found)


def pooled_features(bench: Bench, streams: Streams, pooling: Pooling) -> Float[Tensor, "prompts d_sae"]:
    """Every feature's activation on every prompt, in the SAE's units."""
    sae, found = bench.sae, torch.zeros(len(streams), bench.sae.config.d_sae)
    counts = streams.starts.diff()
    row = torch.repeat_interleave(torch.arange(len(streams)), counts)
    ends = streams.starts[1:] - 1
    with bar("encoding prompts", len(streams.x)) as progress:
        for first in range(0, len(streams.x), PIECE):
            of = row[first : first + PIECE]
            values, indices = (t.cpu() for t in sae.encode_sparse(streams.x[first : first + PIECE].to(sae.W_enc)))
            # Only the active ones: a place in `found` for each, row after row.
            places, values = (of[:, None] * sae.config.d_sae + indices), values.float()
            if pooling == "last":
                last = torch.isin(torch.arange(first, first + len(of)), ends)
                places, values = places[last], values[last]
            how = "amax" if pooling == "max" else "sum"
            found.view(-1).scatter_reduce_(0, places.flatten(), values.flatten(), how)
            progress.step(len(of))
    return found / counts[:, None] if pooling == "mean" else found


def _weighed(
    streams: Streams,
    pooled: Tensor,
    rows: Sequence[Prompt],
    harmful: Sequence[bool],
    groups: Sequence[str],
    count: int,
    seed: int,
) -> tuple[tuple[float, float], float]:
    # How much each of the two readings counts, on prompts that neither was fitted to; and the bias of their sum. Those are
    # of the sources that the probe was fitted to, where it needs no help; on others it does.
    apart = [_tenth(row) for row in rows]
    stay, out = ([i for i, away in enumerate(apart) if away is side] for side in (False, True))
    if len({harmful[i] for i in out}) < 2 or len({harmful[i] for i in stay}) < 2:
        return (1.0, 0.0), 0.0
    sparse = fit(pooled[stay], [harmful[i] for i in stay], [groups[i] for i in stay], count)
    probe = fit_attention(streams, harmful, groups, stay, seed=seed)
    x = torch.stack([probe.scores(streams, out), sparse.scores(pooled[out])], dim=1).numpy()
    y = np.array([harmful[i] for i in out])
    model = LogisticRegression(C=1.0).fit(x, y, weights_of(y, [groups[i] for i in out]))
    by_probe, by_features = (max(0.0, float(w)) for w in model.coef_[0])
    (_, wide_probe), (middle, wide_features) = ((column.mean(), column.std()) for column in x.T)
    least = LEAST * by_probe * wide_probe / max(wide_features, 1e-6)
    more = max(0.0, float(least - by_features))
    return (by_probe, by_features + more), float(model.intercept_[0] - more * middle)


def _tenth(row: Prompt) -> bool:
    # Twins and the rest of their family are apart together, whatever the order of the file.
    name = row.pair or row.goal or row.family or row.prompt or row.id or ""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % APART == 0


@dataclass(frozen=True)
class _OnStreams:
    # A probe where what reads a matrix is expected: the matrix has one column, the numbers of the rows.
    probe: AttentionProbe
    streams: Streams

    def scores(self, pooled: Tensor) -> Tensor:
        return self.probe.scores(self.streams, pooled[:, 0].long().tolist())


def _attention_on(
    streams: Streams, seed: int, numbers: Tensor, harmful: Sequence[bool], groups: Sequence[str]
) -> _OnStreams:
    rows = numbers[:, 0].long().tolist()
    label, group = [False] * len(streams), [""] * len(streams)
    for i, h, g in zip(rows, harmful, groups, strict=True):
        label[i], group[i] = h, g
    return _OnStreams(fit_attention(streams, label, group, rows, seed=seed), streams)
