"""What an answer tells of itself: what the gate thought, what fired, and whether and why the reply was steered."""

import math
from typing import Any

from demur.records import Feature, Fired
from demur.records.record import Record
from demur.server.offer import Picked
from demur.steering.explain import explain, shares
from demur.steering.generate import Reply


class FiredFeature(Record):
    """A feature that took part."""

    feature: int
    role: str
    """sensor: it was read; actuator: it was raised."""
    site: str
    value: float
    """Sensor: its pooled activation on the prompt. Actuator: the value it was set to or changed by."""
    share: float | None = None
    """Sensor: what it added to the gate's score."""
    token: str = ""
    """Sensor: the word on which it was strongest."""
    name: str = ""
    """What it is about, as far as evidence says: where it fires, or what it writes."""


class Account(Record):
    """The `demur` object of an answer."""

    policy: str
    policy_hash: str
    level: str
    gate: float | None = None
    """The gate's score on the prompt; none where the policy has no gate."""
    threshold: float | None = None
    """From which score on the gate opens; none where it never does."""
    margin: float | None = None
    """Score less threshold."""
    hazard: str | None = None
    """Kind of harm that the gate read, where it tells kinds apart."""
    last_turn: bool = False
    """Whether the score is that of the last turn by itself, of a talk of several."""
    open: bool
    """Whether the gate opened, on the prompt or later."""
    steered: bool
    """Whether anything was changed, or the reply is a fixed text."""
    edited: int
    """Token positions whose residual stream was edited."""
    dose: float | None = None
    late: int | None = None
    """Reply token, from 0, at which the gate on the reply opened."""
    trace: tuple[float, ...] = ()
    """What that gate thought at each token of the reply."""
    fired: tuple[FiredFeature, ...] = ()
    why: tuple[str, ...] = ()
    """The same in words."""


def account(picked: Picked, text: str, tokens: int, finish: str, seen: dict[str, Any]) -> Account:
    """The account of one reply, from what its session reported."""
    policy, gate = picked.policy, picked.policy.gate
    line = gate.thresholds.get(seen.get("hazard") or "", gate.threshold) if gate else None
    score = seen["gate"]
    weights = shares(gate.sensor) if gate else {}
    why = explain(policy, Reply(text, tokens, finish, seen), picked.known)
    if finish == "content_filter":
        why = [*why, "the reply was ended there, before what had been held back."]
    return Account(
        policy=picked.name,
        policy_hash=picked.hash,
        level=picked.level,
        gate=_number(score),
        threshold=_number(line),
        margin=_number(score - line) if score is not None and line is not None else None,
        hazard=seen.get("hazard"),
        last_turn=seen.get("last_turn", False),
        open=seen["open"],
        steered=bool(seen["edited"]) or bool(policy.canned and seen["open"]) or finish == "content_filter",
        edited=seen["edited"],
        dose=_number(seen.get("dose")),
        late=seen.get("late"),
        trace=tuple(seen.get("trace", ())),
        fired=tuple(
            _told(f, weights.get((f.site, f.feature)), picked.known.get((f.site, f.feature))) for f in seen["fired"]
        ),
        why=tuple(why),
    )


def _told(fired: Fired, weight: float | None, known: Feature | None) -> FiredFeature:
    read = fired.role == "sensor"
    return FiredFeature(
        feature=fired.feature,
        role=fired.role,
        site=fired.site,
        value=fired.value,
        share=weight * fired.value if read and weight is not None else None,
        token=fired.token.strip(),
        name=_name(known, read),
    )


def _name(known: Feature | None, read: bool) -> str:
    if known is None:
        return ""
    if known.name:
        return known.name
    if read:
        contexts = known.evidence.contexts
        return f"fires on …{' '.join(contexts[0].split())[-70:]}" if contexts else ""
    return f"writes {', '.join(known.evidence.raised[:6])}" if known.evidence.raised else ""


def _number(value: float | None) -> float | None:
    # JSON has no infinity: a threshold that is never reached, and a score of nothing, are none.
    return value if value is not None and math.isfinite(value) else None
