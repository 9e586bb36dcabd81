"""Word by word, what a gate thought of a prompt as it read on, and which of its features were active."""

from collections.abc import Callable, Mapping, Sequence

from demur.records import GuardSensor, Heard, readers
from demur.steering.gates import GateState
from demur.steering.states import FeatureState, Seen


def heard(
    gate: GateState, row: int, since: int, seen: Mapping[str, Sequence[Seen]], word: Callable[[int], str]
) -> tuple[Heard, ...]:
    """What the gate read of a row, token by token; empty where nobody said anything, or a guard alone was asked.

    Args:
        gate: Behind the prompt.
        row: Of the batch.
        since: The position from which on it counts: the last turn's first, where that is the score, else 0.
        seen: By site, the tokens of all rows, in the chunks in which they came.
        word: The text of the row's token at a position.
    """
    sensors = [r for r in readers(gate.gate.sensor) if not isinstance(r, GuardSensor)]
    read: dict[str, Seen] = {}
    for site in {r.site for r in sensors}:
        parts = [s.where((s.row == row) & (s.position >= since)) for s in seen.get(site, ())]
        if not any(len(part.row) for part in parts):
            return ()
        read[site] = Seen.joined(parts)
    if not read:
        return ()
    positions = next(iter(read.values())).position.tolist()
    fired: list[dict[str, float]] = [{} for _ in positions]
    states = [s for r in dict.fromkeys(sensors) if isinstance(s := gate.states[r], FeatureState)]
    several = len({s.sensor.site for s in states}) > 1
    for state in states:
        site, values = state.sensor.site, read[state.sensor.site].f[:, state.columns]
        for at, j in (values > 0).nonzero().tolist():
            feature = state.sensor.features[j]
            fired[at][f"{site}/{feature}" if several else str(feature)] = round(float(values[at, j]), 2)
    scores = gate.running(row, read).tolist()
    return tuple(
        Heard(token=word(p), score=round(s, 2), fired=f) for p, s, f in zip(positions, scores, fired, strict=True)
    )
