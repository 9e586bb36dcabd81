"""Sensing: what reads harm off prompts, fitted on training prompts.

Two readings of one site are made and summed: a logistic model of a few named features, and an attention probe of the
stream, which is not made of features. The first says in words what it saw; the second tells a harmful request from one
that only looks like it, where the first is at a loss. A guard model's answer is a third, where one is named.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
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
from demur.data.chats import CHATS, FOLLOWING
from demur.data.wrappers import WRAPPED
from demur.features.attention import AttentionProbe, fit_attention
from demur.features.effect import Bench
from demur.features.held_out import beside_a_probe, held_out
from demur.features.reading import Streams, read_streams, with_last_turns
from demur.features.sensors import RARE, fit, weights_of
from demur.features.settings import FindSettings
from demur.models.chat import tokens_and_roles
from demur.models.guard import Guard, conversation_of, guard_of
from demur.models.load import LanguageModel
from demur.progress import bar, say
from demur.records import (
    AttentionSensor,
    Feature,
    FeatureSensor,
    GuardSensor,
    HeldOut,
    JoinedSensor,
    Kind,
    Pooling,
    Prompt,
    Reader,
    Sensor,
)

FEWEST = 1000
"""Training prompts below which there is no attention probe, which then reads worse than features do, and none is wrapped."""
STREAMS = "streams.safetensors"
VECTOR = "attention"
"""Name of the probe's arrays in the file of vectors."""
APART = 10
"""One family of prompts in so many is kept apart, to weigh the readings by."""
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
    kept = folder / STREAMS if folder else None
    talks = [row.conversation for row in rows]
    streams = read_streams(bench.lm, bench.sae.config.site, talks, kept=kept)
    # A gate reads the last of several turns by itself too, where words lean on others that it does not see.
    streams, several = with_last_turns(bench.lm, streams, talks)
    groups = [f"{source} {row.kind}" for source, row in zip(sources, rows, strict=True)]
    groups += [f"{groups[i]} alone" for i in several]
    apart = [_tenth(row) for row in rows]  # a turn and its conversation are on one side
    apart += [apart[i] for i in several]
    sources = [*sources, *(sources[i] for i in several)]
    rows = [*rows, *(_last_turn(rows[i]) for i in several)]
    harmful = [row.label == "harmful" for row in rows]
    pooled = pooled_features(bench, streams, pooling)
    reading = fit(pooled, harmful, groups, count)
    levels = pooled[:, reading.features].amax(0).tolist()
    features = [
        Feature(id=f, role="sensor", level=level, scores={"weight": weight, "auc": auc})
        for f, level, weight, auc in zip(reading.features, levels, reading.weights, reading.areas, strict=True)
    ]
    found: tuple[HeldOut, ...] = ()
    if settings.held_out:
        # A request that is wrapped, or follows upon a chat, is another source's too, and would stay when that is left out.
        bare = [i for i, source in enumerate(sources) if source not in (WRAPPED, CHATS, FOLLOWING)]
        told = ([harmful[i] for i in bare], [sources[i] for i in bare], [groups[i] for i in bare])
        found = beside_a_probe(pooled[bare], streams.pooled("mean")[bare], *told, count, seed)
        if attention:
            # What is left out of, and fitted to, are rows of the streams; their numbers stand for them.
            numbers = torch.tensor(bare, dtype=torch.float64)[:, None]
            by_attention = partial(_attention_on, streams, seed)
            found += (held_out("attention probe", by_attention, numbers, *told, seed),)
    kinds = read_kinds(bench.sae.config.site, pooled, rows, pooling)
    guard = guard_of(settings.guard, bench.lm.device) if settings.guard else None
    if not attention and guard is None:
        return Sensed(features, reading.bias, kinds=kinds, held_out=found)
    site = bench.sae.config.site
    of: dict[str, Reader] = {}
    arrays: dict[str, Any] = {}
    if attention:
        probe = fit_attention(streams, harmful, groups, range(len(rows)), seed=seed)
        of["probe"] = AttentionSensor(site=site, vector=VECTOR, bias=probe.bias)
        arrays = {f"{VECTOR}.{name}": array for name, array in probe.arrays().items()}
    of["features"] = FeatureSensor(
        site=site, features=tuple(reading.features), weights=tuple(reading.weights), bias=reading.bias, pooling=pooling
    )
    weights, bias = _weighed(bench.lm, streams, pooled, rows, apart, harmful, groups, settings, attention, guard)
    if guard is not None and weights["guard"] > 0:
        of["guard"] = GuardSensor(**guard.how.model_dump(), model_hash=guard.lm.hash)
    elif guard is not None:
        say(
            f"the guard {guard.how.model} adds nothing to what is read of the model itself on "
            "the prompts kept apart to weigh by (or these are too few to tell), and is left out."
        )
    if len(of) == 1:
        return Sensed(features, reading.bias, kinds=kinds, held_out=found)
    sensor = JoinedSensor(
        name="harm", rule="sum", of=tuple(of.values()), weights=tuple(weights[name] for name in of), bias=bias
    )
    return Sensed(features, reading.bias, sensor, kinds, arrays, found)


def _last_turn(row: Prompt) -> Prompt:
    return row.model_copy(update={"prompt": row.conversation[-1].content, "messages": None})


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
    lm: LanguageModel,
    streams: Streams,
    pooled: Tensor,
    rows: Sequence[Prompt],
    apart: Sequence[bool],
    harmful: Sequence[bool],
    groups: Sequence[str],
    settings: FindSettings,
    attention: bool,
    guard: Guard | None,
) -> tuple[dict[str, float], float]:
    # How much each reading counts - the probe's, the features', a guard's - on prompts that none was fitted to; and the bias
    # of their sum.
    stay, out = ([i for i, away in enumerate(apart) if away is side] for side in (False, True))
    names = [*(["probe"] if attention else []), "features", *(["guard"] if guard else [])]
    if len({harmful[i] for i in out}) < 2 or len({harmful[i] for i in stay}) < 2:
        return {name: float(name == names[0]) for name in names}, 0.0
    told = {}
    if attention:
        told["probe"] = fit_attention(streams, harmful, groups, stay, seed=settings.seed).scores(streams, out)
    sparse = fit(pooled[stay], [harmful[i] for i in stay], [groups[i] for i in stay], settings.sensors)
    told["features"] = sparse.scores(pooled[out])
    if guard is not None:
        # As a gate sees them: the messages that the steered model's tokens are made of.
        coded = [map(torch.tensor, tokens_and_roles(lm, rows[i].conversation)) for i in out]
        told["guard"] = guard.scores([conversation_of(lm, *tokens) for tokens in coded])
    return weigh(told, [harmful[i] for i in out], [groups[i] for i in out])


def weigh(
    told: Mapping[str, Float[Tensor, " prompts"]], harmful: Sequence[bool], groups: Sequence[str]
) -> tuple[dict[str, float], float]:
    """Weights, none below 0, and bias of a sum of readings that tells harmful prompts from others.

    The prompts are of the sources that the probe was fitted to, where it needs no help; on others it does. So beside a probe
    the features keep a share (`LEAST`).
    """
    y, each = np.array(harmful), weights_of(np.array(harmful), list(groups))
    kept = {name: scores.double().numpy() for name, scores in told.items()}
    while kept:
        model = LogisticRegression(C=1.0).fit(np.stack(list(kept.values()), axis=1), y, each)
        found, bias = dict(zip(kept, map(float, model.coef_[0]), strict=True)), float(model.intercept_[0])
        worst = min(kept, key=lambda name: found[name])
        if found[worst] >= 0:
            break
        del kept[worst]
    else:
        found, bias = {next(iter(told)): 1.0}, 0.0
    weights = dict.fromkeys(told, 0.0) | {name: found[name] for name in kept or found}
    if "probe" in told:
        features = told["features"].double().numpy()
        least = (
            LEAST * weights["probe"] * float(told["probe"].double().numpy().std()) / max(float(features.std()), 1e-6)
        )
        more = max(0.0, least - weights["features"])
        weights["features"] += more
        bias -= more * float(features.mean())
    return weights, bias


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
