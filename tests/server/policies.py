"""Policies of the tiny model that differ in all that a row may differ in."""

import numpy as np

from demur.records import AttentionSensor, Continuation, Gate, JoinedSensor, Kind, Policy, ProbeSensor, Push
from tests import tiny

OTHER = tiny.SENSOR.model_copy(update={"name": "other", "features": (2, 3), "weights": (0.7, -0.4), "bias": -0.2})


def four() -> list[Policy]:
    """One that always acts, one behind a gate that opens, one whose gate stays shut, one of dense pushes with a dose."""
    kinds = (Kind(name="weapons", sensor=OTHER), Kind(name="drugs", sensor=tiny.SENSOR))
    gate = Gate(sensor=tiny.SENSOR, threshold=-9.0, kinds=kinds, doses={"weapons": 0.5, "drugs": 1.5})
    return [
        tiny.policy(name="always", positions="all", features=(2, 11), operation="add"),
        tiny.policy(name="kinds").model_copy(update={"gate": gate}),
        tiny.policy(name="shut", threshold=1e9),
        tiny.dense_policy(Push(vector="v", operation="add", value=0.4), Push(vector="m", operation="map", value=0.3)),
    ]


WIDE = tiny.SENSOR.model_copy(
    update={
        "name": "wide",
        "features": tuple(range(64)),
        "weights": tuple(np.random.default_rng(7).normal(size=64).tolist()),
        "bias": 0.0,
    }
)
"""Reads every feature, so that no two tokens score alike."""


def late(opens: float = 0.2, name: str = "late") -> Policy:
    """A gate on the reply, shut on the prompt."""
    gate = Gate(
        sensor=tiny.SENSOR,
        threshold=1e9,
        continuation=Continuation(sensor=WIDE, opens=opens, closes=opens - 0.1, tau=3.0),
    )
    policy = tiny.policy(name=name)
    rise = policy.interventions[0].model_copy(update={"onset": 2})
    held = {"v": np.zeros(tiny.lm().d_model)}
    return policy.model_copy(update={"gate": gate, "interventions": (rise,)}).holding(held)


def read_by_all() -> Policy:
    """A gate that every kind of sensor reads for, the attention probe's running softmax among them."""
    width = tiny.lm().d_model
    draw = np.random.default_rng(9)
    arrays = {"a.query": (2, width), "a.value": (6, width), "a.value_bias": (6,), "a.out": (6,), "v": (width,)}
    sensors = (
        AttentionSensor(site="0.resid_post", vector="a"),
        ProbeSensor(site="0.resid_post", vector="v", pooling="max"),
        ProbeSensor(site="0.resid_post", vector="v", pooling="mean"),
        tiny.SENSOR.model_copy(update={"pooling": "last"}),
    )
    gate = Gate(sensor=JoinedSensor(rule="sum", of=sensors, weights=(1.0, 0.1, 0.1, 1.0)), threshold=-99.0, soft=200.0)
    held = {name: draw.normal(size=shape) for name, shape in arrays.items()}
    return tiny.policy(name="all").model_copy(update={"gate": gate}).holding(held)
