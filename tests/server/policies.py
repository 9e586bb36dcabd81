"""Policies of the tiny model that differ in all that a row may differ in."""

import numpy as np

from demur.records import Continuation, Gate, Kind, Policy, Push
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


def late(opens: float = 0.2, name: str = "late") -> Policy:
    """A gate on the reply, shut on the prompt."""
    gate = Gate(
        sensor=tiny.SENSOR,
        threshold=1e9,
        continuation=Continuation(sensor=OTHER, opens=opens, closes=opens - 0.1, tau=3.0),
    )
    policy = tiny.policy(name=name)
    rise = policy.interventions[0].model_copy(update={"onset": 2})
    held = {"v": np.zeros(tiny.lm().d_model)}
    return policy.model_copy(update={"gate": gate, "interventions": (rise,)}).holding(held)
