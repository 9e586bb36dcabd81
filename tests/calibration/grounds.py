"""A tiny model, prompts and features to calibrate on."""

import numpy as np

from demur.features.effect import Bench
from demur.records import Continuation, Feature, FeatureSet, JoinedSensor, Kind, ProbeSensor, Prompt, PromptSet
from tests import tiny

PROBE = ProbeSensor(site="1.resid_post", vector="v", bias=0.3)
OTHER = tiny.SENSOR.model_copy(update={"name": "other", "features": (2, 3), "weights": (0.7, -0.4), "bias": -0.2})


def bench() -> Bench:
    """Raises features at block 1, and reads some at block 0."""
    return Bench(tiny.lm(), tiny.sae(), others={"0.resid_post": tiny.sae("llama", 0)})


def features(**changes) -> FeatureSet:
    """Three actuators at block 1 and a sensor there."""
    every = (
        *(Feature(id=f, role="actuator", level=level) for f, level in ((3, 4.0), (7, 3.0), (11, 2.0))),
        Feature(id=5, role="sensor", scores={"weight": 1.0}),
        Feature(id=9, role="sensor", scores={"weight": -0.5}),
    )
    found = FeatureSet(
        model=tiny.lm().name, model_hash=tiny.lm().hash, sae="tiny", sae_hash=tiny.sae().hash, site="1.resid_post",
        method="effect", how="tiny", bias=0.1, features=every,
    )  # fmt: skip
    return found.model_copy(update=changes)


def joined() -> FeatureSet:
    """Its sensor sums features at block 0 and a probe at block 1; it tells two kinds of harm apart and reads replies."""
    sensor = JoinedSensor(rule="sum", of=(tiny.SENSOR, PROBE), weights=(1.0, 0.5), bias=-0.2)
    kinds = (Kind(name="weapons", sensor=tiny.SENSOR), Kind(name="theft", sensor=OTHER))
    late = Continuation(sensor=PROBE, opens=1.0, closes=0.5)
    arrays = {"v": np.random.default_rng(3).normal(size=tiny.lm().d_model) / 8}
    return features(sensor=sensor, kinds=kinds, continuation=late).holding(arrays)


def prompts(n: int = 12) -> PromptSet:
    """So many of each sort, of different lengths."""
    rows = []
    for i in range(n):
        text = " ".join(["tea", "sky", "old", "walk", "sum"][: 1 + i % 5]) + f" {i}"
        rows += [
            Prompt(id=f"h{i}", prompt=f"Break {text}!", label="harmful", source=f"s{i % 2}"),
            Prompt(id=f"l{i}", prompt=f"Break for {text}?", label="benign", kind="lookalike"),
            Prompt(id=f"c{i}", prompt=f"Tell me of {text}.", label="benign", kind="plain", category="chat"),
        ]
    return PromptSet(name="tiny", rows=tuple(rows))
