"""Gates: running rules that read the unedited stream and decide, row by row, whether a policy acts, and how much."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.records import FeatureSensor, Fired, Gate, GuardSensor, JoinedSensor, Policy, Reader
from demur.steering.guards import GuardState
from demur.steering.states import AttentionState, CastState, FeatureState, ProbeState, ReaderState, Seen, state_of, wide


class Late:
    """The gate on the reply: a smoothed score for each row, open from `opens` on until it falls below `closes`."""

    def __init__(self, gate: Gate, state: FeatureState | ProbeState | AttentionState, rows: int, like: Tensor) -> None:
        assert gate.continuation is not None
        self.how, self.state = gate.continuation, state
        self.smooth = torch.zeros(rows, device=like.device, dtype=wide(like))
        self.live = torch.zeros(rows, device=like.device, dtype=torch.bool)
        self.since = torch.zeros(rows, device=like.device, dtype=torch.long)
        self.scores = torch.full((rows, 0), torch.nan, device=like.device, dtype=wide(like))
        """By position: what the gate thought there; NaN where it read nothing."""
        self.was_open = torch.zeros(rows, 0, device=like.device, dtype=torch.bool)
        self.opened: dict[int, tuple[Tensor, Tensor]] = {}
        """By position: which rows are open there, and since which position."""

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.smooth[rows], self.live[rows], self.since[rows] = 0, False, 0
        self.scores[rows], self.was_open[rows] = torch.nan, False
        for live, _ in self.opened.values():
            live[rows] = False

    def update(self, seen: Seen) -> None:
        """Takes in tokens of replies."""
        score = self.state.each(seen)
        width = int(seen.position.max()) + 1
        self.scores, self.was_open = widened(self.scores, width, torch.nan), widened(self.was_open, width)
        for position in seen.position.unique().tolist():
            now = seen.position == position
            row = seen.row[now]
            smooth = self.smooth[row] + (score[now] - self.smooth[row]) / self.how.tau
            was = self.live[row]
            is_open = torch.where(was, smooth >= self.how.closes, smooth >= self.how.opens)
            self.smooth[row], self.live[row] = smooth, is_open
            self.since[row] = torch.where(is_open & ~was, position, self.since[row])
            self.scores[row, position], self.was_open[row, position] = smooth.detach(), is_open
            # What stands at a position may be of rows that were there before.
            self.opened.pop(position, None)
            if self.live.any():
                self.opened[position] = (self.live.clone(), self.since.clone())

    def trace(self, row: int) -> list[tuple[int, float, bool]]:
        """Position, smoothed score and whether it was open, at each token of a row's reply."""
        told = enumerate(zip(self.scores[row].tolist(), self.was_open[row].tolist(), strict=True))
        return [(position, score, is_open) for position, (score, is_open) in told if not math.isnan(score)]

    def at(self, row: Int[Tensor, " tokens"], position: Int[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        """Whether the gate is open at these tokens, and since which position."""
        is_open, since = torch.zeros_like(row, dtype=torch.bool), position.clone()
        for place in position.unique().tolist():
            if place in self.opened:
                live, began = self.opened[place]
                here = position == place
                is_open[here], since[here] = live[row[here]], began[row[here]]
        return is_open, since


class GateState:
    """A policy's gate on one batch."""

    def __init__(
        self,
        policy: Policy,
        gate: Gate,
        features: Mapping[str, Tensor],
        rows: int,
        like: Tensor,
    ) -> None:
        self.gate = gate
        self.prompt_readers = gate.readers
        self._of_stream = tuple(r for r in self.prompt_readers if not isinstance(r, GuardSensor))
        self._sites = {r.site for r in self._of_stream}
        self._state_of = partial(state_of, policy=policy, features=features, rows=rows, like=like)
        self.states = {r: self._state_of(r) for r in gate.every_reader}
        self.last_turn: dict[Reader, ReaderState] = {}
        """The same, reading the last turn of rows that have several; made when the first such row comes."""
        self.several = torch.zeros(rows, device=like.device, dtype=torch.bool)
        """Rows of which the last turn was read by itself."""
        self.late = None
        if gate.continuation is not None:
            state = self.states[gate.continuation.sensor]
            assert not isinstance(state, CastState | GuardState)
            self.late = Late(gate, state, rows, like)
        self._decided: tuple[Tensor, ...] | None = None

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        for state in (*self.states.values(), *self.last_turn.values()):
            state.forget(rows)
        self.several[rows] = False
        if self.late is not None:
            self.late.forget(rows)
        self._decided = None

    def reads(self, site: str, of_reply: bool) -> bool:
        """Whether something is read at a site, of prompts or of replies."""
        if of_reply:
            return self.late is not None and self.late.how.sensor.site == site
        return site in self._sites

    def update(self, site: str, seen: Seen, last_turn: Bool[Tensor, " tokens"]) -> None:
        """Takes in tokens of prompts, as they are at one of the gate's sites; `last_turn` says which are of the last of
        several turns."""
        self._update(self.states, site, seen)
        if self.reads_last_turns and last_turn.any():
            late = seen.where(last_turn)
            self.several[late.row] = True
            self._update(self._of_last_turns(), site, late)

    def _of_last_turns(self) -> dict[Reader, ReaderState]:
        if not self.last_turn:
            self.last_turn = {r: self._state_of(r) for r in self.prompt_readers}
        return self.last_turn

    def _update(self, states: Mapping[Reader, ReaderState], site: str, seen: Seen) -> None:
        for sensor in self._of_stream:
            if sensor.site == site:
                states[sensor].update(seen)
                self._decided = None

    @property
    def reads_last_turns(self) -> bool:
        """Whether the last of several turns is read by itself too."""
        return self.gate.turns == "either"

    def take(self, sensor: GuardSensor, rows: Sequence[int], scores: Tensor, of_last_turn: bool = False) -> None:
        """Takes in what a guard said of rows' conversations, or of their last turn by itself."""
        at = torch.tensor(list(rows), device=self.several.device)
        self.several[at] |= of_last_turn
        state = (self._of_last_turns() if of_last_turn else self.states)[sensor]
        assert isinstance(state, GuardState)
        state.take(at, scores)
        self._decided = None

    def scores(self) -> Float[Tensor, " rows"]:
        """Each row's score so far."""
        return self._decide()[0]

    def running(self, row: int, seen: Mapping[str, Seen]) -> Float[Tensor, " tokens"]:
        """What the score of a row was after each token that was read of it, given these at each site: where its score is
        that of its last turn by itself (`by_last_turn`), those of the last turn."""
        states = self._states_of(row)
        length = len(next(iter(seen.values())).x)

        def so_far(reader: Reader) -> Tensor:
            state = states[reader]
            if isinstance(state, GuardState):
                return state.scores()[row].expand(length)  # asked once, of the whole
            assert not isinstance(reader, GuardSensor)
            return state.running(seen[reader.site])

        return self._score(self.gate.sensor, so_far)

    def open(self) -> Bool[Tensor, " rows"]:
        """Which rows reach the threshold."""
        return self.margins() >= 0

    def margins(self) -> Float[Tensor, " rows"]:
        """How far each row's score lies above its threshold."""
        return self._decide()[1]

    def dose(self) -> Float[Tensor, " rows"]:
        """How much is done to each row, relative to the interventions' values."""
        return self._decide()[2]

    def kind(self, row: int) -> str | None:
        """Which kind of harm a row reads most like; None where the gate tells none apart."""
        return self.gate.kinds[int(self._decide()[3][row])].name if self.gate.kinds else None

    def fired(self, row: int) -> tuple[Fired, ...]:
        """The sensors that took part in a row's score."""
        states = self._states_of(row)
        found = [f for sensor in self.prompt_readers for f in states[sensor].fired(row)]
        return tuple({(f.site, f.feature): f for f in found}.values())

    def _states_of(self, row: int) -> Mapping[Reader, ReaderState]:
        return self.last_turn if self.by_last_turn(row) else self.states

    def by_last_turn(self, row: int) -> bool:
        """Whether a row's score is that of its last turn by itself."""
        return bool(self._decide()[4][row])

    def _decide(self) -> tuple[Tensor, ...]:
        # Once the prompts are read nothing changes, and every further token asks again.
        if self._decided is None:
            score = self._score(self.gate.sensor, lambda r: self.states[r].scores())
            by_last = torch.zeros_like(self.several)
            if self.several.any():
                alone = self._score(self.gate.sensor, lambda r: self.last_turn[r].scores())
                by_last = self.several & (alone > score)
                score = torch.where(by_last, alone, score)
            line, dose = torch.full_like(score, self.gate.threshold), torch.ones_like(score)
            if self.gate.kinds:
                which = self._kinds(self.states)
                if by_last.any():
                    which = torch.where(by_last, self._kinds(self.last_turn), which)
                for i, kind in enumerate(self.gate.kinds):
                    line[which == i] = self.gate.thresholds.get(kind.name, self.gate.threshold)
                    dose[which == i] = self.gate.doses.get(kind.name, 1.0)
            else:
                which = torch.zeros_like(score, dtype=torch.long)
            if self.gate.soft:
                above = ((score - line) / self.gate.soft).clamp(0, 1)
                dose = dose * (self.gate.floor + (1 - self.gate.floor) * above)
            self._decided = score, torch.where(line == -torch.inf, torch.inf, score - line), dose, which, by_last
        return self._decided

    def _kinds(self, states: Mapping[Reader, ReaderState]) -> Int[Tensor, " rows"]:
        of = [self._score(k.sensor, lambda r: states[r].scores()) for k in self.gate.kinds]
        return torch.stack(of, dim=1).argmax(1)

    def _score(self, sensor: Reader | JoinedSensor, score_of: Callable[[Reader], Tensor]) -> Float[Tensor, " rows"]:
        if not isinstance(sensor, JoinedSensor):
            return score_of(sensor)
        parts = [self._score(part, score_of) for part in sensor.of]
        if sensor.rule == "sum":
            return sum((w * p for w, p in zip(sensor.weights, parts, strict=True)), torch.zeros_like(parts[0])) + (
                sensor.bias
            )
        margins = torch.stack([p - t for p, t in zip(parts, sensor.thresholds, strict=True)], dim=1)
        return {"any": margins.amax(1), "all": margins.amin(1), "not": -margins[:, 0]}[sensor.rule]


def wanted_features(
    gates: Sequence[Gate], like: Tensor, before: Mapping[str, Tensor] | None = None
) -> dict[str, Int[Tensor, " n"]]:
    """The features that gates read at each site, each once; those that were wanted before keep their places."""
    found = {site: dict.fromkeys(features.tolist()) for site, features in (before or {}).items()}
    for gate in gates:
        for sensor in gate.stream_readers:
            found.setdefault(sensor.site, {})
            if isinstance(sensor, FeatureSensor):
                found[sensor.site].update(dict.fromkeys(sensor.features))
    return {site: torch.tensor(list(f), device=like.device, dtype=torch.long) for site, f in found.items()}


def widened(by_position: Tensor, width: int, blank: float = 0.0) -> Tensor:
    """A tensor `[rows, positions]` with room for so many positions at least; it grows by doubling."""
    have = by_position.shape[1]
    if have >= width:
        return by_position
    return torch.cat([by_position, by_position.new_full((len(by_position), max(width, 2 * have) - have), blank)], dim=1)
