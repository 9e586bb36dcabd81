"""A policy in words: when it acts, on what evidence, and what it does."""

from collections.abc import Mapping
from typing import Any

from demur.records import (
    AttentionSensor,
    CastSensor,
    FeatureSensor,
    Gate,
    GuardSensor,
    Intervention,
    JoinedSensor,
    Policy,
    Reader,
)

WHERE = {
    "reply": "the reply",
    "user": "the user's words and the reply",
    "prompt": "the whole prompt",
    "all": "every word of the talk",
}


def in_words(policy: Policy) -> list[str]:
    """A policy as sentences."""
    lines = [f"policy {policy.name} ({policy.hash}), for {policy.model or 'any model'}", f"  {policy.about}"]
    if policy.system:
        lines.append(f"  It puts this system prompt before every conversation: {policy.system!r}")
    if policy.gate is not None:
        lines += _gate_in_words(policy.gate)
    elif policy.acts:
        lines.append("  It has no gate: it acts on every prompt.")
    if policy.is_plain:
        lines.append("  It does nothing.")
    for i in policy.interventions:
        what = [f"{e.operation} feature {e.feature} ({e.value:.1f})" for e in i.edits]
        what += [f"{p.operation} {p.vector} ({p.value:.2f})" for p in i.pushes]
        what += [] if i.keep_error else ["what the SAE does not reconstruct is left out"]
        lines.append(f"  At {i.site}, on {WHERE[i.positions]}: {', '.join([*what, *_manner(i)])}.")
    if policy.canned:
        lines.append(f"  Its reply is a fixed text: {policy.canned!r}")
    for level, at in policy.levels.items():
        lines.append(
            f"  Level {level}: opens at {at.threshold:.2f}, {at.dose:g} of the dose{f'; {at.about}' if at.about else ''}."
        )
    lines += _chosen_in_words(policy.receipt)
    return lines


def _gate_in_words(gate: Gate) -> list[str]:
    alone = " or on the last of several turns by itself," if gate.turns == "either" else ""
    lines = [f"  It acts when, on the prompt,{alone} {described(gate.sensor)} reach {gate.threshold:.2f}."]
    if gate.soft:
        lines.append(f"  The dose rises from {gate.floor:.2f} there to 1 at {gate.threshold + gate.soft:.2f}.")
    if gate.kinds:
        lines.append(f"  It tells {len(gate.kinds)} kinds of harm apart: {', '.join(k.name for k in gate.kinds)}.")
    for kind in dict.fromkeys((*gate.thresholds, *gate.doses)):
        lines.append(
            f"  For {kind}: from {gate.thresholds.get(kind, gate.threshold):.2f} on, "
            f"at {gate.doses.get(kind, 1.0):.2f} of the dose."
        )
    if (late := gate.continuation) is not None:
        lines.append(
            f"  It acts also when, on the reply, {described(late.sensor)}, smoothed over {late.tau:g} tokens, reach "
            f"{late.opens:.2f}, until they fall below {late.closes:.2f}."
        )
    return lines


def _chosen_in_words(receipt: Mapping[str, Any]) -> list[str]:
    # What `demur calibrate` wrote of how the operating point was chosen.
    now = receipt.get("levels", {}).get(receipt.get("level"), {})
    lines = []
    for kind, rate in receipt.get("gate", {}).items():
        budget = f", budget {100 * rate['budget']:g} %" if "budget" in rate else ""
        promised = f" - {said}" if (said := now.get("said", {}).get(kind)) else ""
        binds = "; it sets the threshold" if kind == now.get("binds") else ""
        lines.append(
            f"  validation, {kind}: gate open on {100 * rate['rate']:.1f} % of {rate['n']}{budget}{promised}{binds}"
        )
    for source, rate in now.get("by_source", {}).items():
        lines.append(f"  validation, harmful of {source}: gate open on {100 * rate['rate']:.1f} % of {rate['n']}")
    if costs := now.get("costs"):
        lines.append(
            f"  {now['binds']} forces a higher threshold than what looks like harm does: without the plain strata it would "
            f"open at {costs['threshold']:.2f}, for {100 * costs['harmful']:.1f} % of the harmful ones."
        )
    if late := receipt.get("late"):
        caught = late.get("caught", {"k": 0, "n": 0})
        lines.append(
            f"  validation, gate on the reply: open on {late['benign']['k']} of {late['benign']['n']} benign replies "
            f"({late['said']}), on {caught['k']} of {caught['n']} that comply with harm."
        )
    if search := receipt.get("search"):
        lines.append(f"  How it acts was chosen from {search['trials']} ways: {search['rule']}")
    return lines


def _manner(act: Intervention) -> list[str]:
    found = [f"scaled by the token's norm over {act.norm:.0f}"] if act.norm else []
    found += [f"no further than {act.cap:g} of the token's norm"] if act.cap else []
    found += [f"outside of {act.off}"] if act.off else []
    found += [f"rising over {act.onset} tokens"] if act.onset else []
    found += [f"falling over {act.decay} tokens after {act.hold}"] if act.hold is not None else []
    return found


def described(sensor: Reader | JoinedSensor) -> str:
    """A sensor in words."""
    if isinstance(sensor, FeatureSensor):
        return f"{len(sensor.features)} features at {sensor.site} ({sensor.pooling} over tokens), weighted and summed"
    if isinstance(sensor, CastSensor):
        return f"how far the prompt's mean at {sensor.site} lies along {sensor.vector}"
    if isinstance(sensor, JoinedSensor):
        parts = [described(part) for part in sensor.of]
        if sensor.rule == "not":
            return f"not ({parts[0]} reaching {sensor.thresholds[0]:.2f})"
        if sensor.rule == "sum":
            return " + ".join(f"{w:.2f} × ({part})" for w, part in zip(sensor.weights, parts, strict=True))
        lines = [f"({p} reaching {t:.2f})" for p, t in zip(parts, sensor.thresholds, strict=True)]
        return f"{sensor.rule} of {', '.join(lines)}"
    if isinstance(sensor, GuardSensor):
        return f"the nats by which the guard {sensor.model} rather says {sensor.unsafe!r} than {sensor.safe!r}"
    if isinstance(sensor, AttentionSensor):
        return f"an attention probe at {sensor.site}"
    return f"a dense probe at {sensor.site} ({sensor.pooling} over tokens)"
