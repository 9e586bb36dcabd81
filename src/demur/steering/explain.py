"""Why a reply came out as it did, in words: what the gate read, which features took part, what was changed."""

import re
from collections.abc import Mapping, Sequence

from demur.records import Feature, FeatureSensor, Fired, Heard, JoinedSensor, Policy, Reader, readers
from demur.steering.generate import Reply

MARKS = re.compile(r"<\|\w+\|>(?:(?:system|user|assistant)\b)?")
NAMELESS = {
    "probe": "a direction", "attention": "an attention probe", "cast": "a condition on one direction",
    "guard": "a guard model",
}  # fmt: skip
"""Sensors that read no features, in words."""
FEW, MOST = 40, 8
"""Tokens of a prompt that is told word by word; and of how many of a longer one."""
Known = Mapping[tuple[str, int], Feature]
"""Features whose evidence may be quoted, by site and number."""


def explain(policy: Policy, reply: Reply, known: Known) -> list[str]:
    """Lines for a person."""
    if policy.is_plain:
        return ["no policy: this is the plain model."]
    seen = reply.steering
    lines = ["a system prompt was put before the conversation."] if policy.system else []
    if policy.gate is not None:
        lines += _read(policy, seen, known)
    if policy.canned and seen["open"]:
        return [*lines, "the reply is a fixed text; nothing was generated."]
    if not seen["edited"]:
        return [*lines, "nothing was changed."]
    dose = seen.get("dose", 1.0)
    lines.append(f"changed at {seen['edited']} token positions{f', at {dose:.2f} of the dose' if dose != 1 else ''}:")
    lines += [f"  {p.operation} {p.vector} × {p.value:.2f}" for i in policy.interventions for p in i.pushes]
    changes = {(i.site, e.feature): e for i in policy.interventions for e in i.edits}
    for f in seen["fired"]:
        if f.role == "actuator":
            edit = changes[f.site, f.feature]
            lines.append(
                f"  feature {f.feature}{_named(known.get((f.site, f.feature)))}: {edit.operation} {edit.value:.1f}"
                f"{_written(known.get((f.site, f.feature)))}"
            )
    return lines


def _read(policy: Policy, seen: dict, known: Known) -> list[str]:
    gate = policy.gate
    assert gate is not None
    line = gate.thresholds.get(seen.get("hazard") or "", gate.threshold)
    opened = seen["gate"] >= line
    kind = f", most like {seen['hazard'].replace('_', ' ')}" if opened and seen.get("hazard") else ""
    what = "the last turn, by itself," if seen.get("last_turn") else "the prompt"
    lines = [
        f"the gate {'opened' if opened else 'stayed shut'}: {what} scored {seen['gate']:.2f}{kind}; "
        f"the threshold is {line:.2f}."
    ]
    lines += _heard(seen.get("heard", ()))
    weights = shares(gate.sensor)
    read = [(w * f.value, f) for f in seen["fired"] if f.role == "sensor" and (w := weights.get((f.site, f.feature)))]
    for share, f in sorted(read, key=lambda pair: -abs(pair[0]))[:5]:
        side = "towards harm" if share > 0 else "away from harm"
        feature = known.get((f.site, f.feature))
        lines.append(f"  {share:+.2f} {side}: feature {f.feature}{_named(feature)}{_where(f)}{_quoted(feature)}")
    unnamed = [NAMELESS[r.kind] for r in readers(gate.sensor) if not isinstance(r, FeatureSensor)]
    if unnamed:
        together = f"the {len(read)} features that were active add {sum(s for s, _ in read):+.2f}; " if read else ""
        lines.append(f"  {together}what else was read is not made of features: {', '.join(dict.fromkeys(unnamed))}.")
    if seen.get("late") is not None:
        lines.append(f"the gate on the reply opened at its token {seen['late'] + 1}.")
    return lines


def _heard(heard: Sequence[Heard]) -> list[str]:
    # A short prompt word by word; of a long one where the score changed most.
    if not heard:
        return []
    if len(heard) <= FEW:
        return ["  as it read on: " + " ".join(f"{_word(h)} {h.score:+.1f}" for h in heard)]
    before = [heard[0].score, *(h.score for h in heard)]
    steps = sorted(zip(heard, before, strict=False), key=lambda step: -abs(step[0].score - step[1]))[:MOST]
    told = ", ".join(f"{h.score - b:+.1f} at {_word(h)!r}" for h, b in steps)
    return [f"  as it read on, the score changed most so: {told}"]


def _word(heard: Heard) -> str:
    return without_marks(heard.token) or "⏎"


def shares(sensor: Reader | JoinedSensor, factor: float = 1.0) -> dict[tuple[str, int], float]:
    """What a unit of each feature's pooled activation adds to the score of a sensor, where it adds to it at all."""
    if isinstance(sensor, FeatureSensor):
        return {(sensor.site, f): factor * w for f, w in zip(sensor.features, sensor.weights, strict=True)}
    if not isinstance(sensor, JoinedSensor):
        return {}
    factors = sensor.weights if sensor.rule == "sum" else [-1.0 if sensor.rule == "not" else 1.0] * len(sensor.of)
    found: dict[tuple[str, int], float] = {}
    for part, w in zip(sensor.of, factors, strict=True):
        for feature, share in shares(part, factor * w).items():
            found[feature] = found.get(feature, 0.0) + share
    return found


def _named(feature: Feature | None) -> str:
    return f" ({feature.name})" if feature is not None and feature.name else ""


def _where(fired: Fired) -> str:
    return f" on {fired.token.strip()!r}" if fired.token.strip() else ""


def _quoted(feature: Feature | None) -> str:
    if feature is None or not feature.evidence.contexts:
        return ""
    return f" - fires on …{without_marks(feature.evidence.contexts[0])[-70:]}"


def without_marks(text: str) -> str:
    """A passage without a template's marks, on one line."""
    return " ".join(MARKS.sub(" ", text).split())


def _written(feature: Feature | None) -> str:
    if feature is None or not feature.evidence.raised or feature.name.startswith("writes"):
        return ""
    return f" - writes {', '.join(feature.evidence.raised[:6])}"
