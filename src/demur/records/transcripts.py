"""Replies, with what a policy saw and did; and what judges say of them."""

from typing import Literal

from demur.records.prompts import Label, Message
from demur.records.record import Record

Outcome = Literal["refused", "partial", "deflected", "complied", "degenerate"]


class Fired(Record):
    """One feature that took part in an answer."""

    feature: int
    role: Literal["sensor", "actuator"]
    value: float
    """Sensor: its pooled activation on the prompt. Actuator: the value it was set to or changed by."""
    site: str = ""
    position: int | None = None
    """Sensor, pooled by its maximum: the prompt token on which it was strongest, from 0."""
    token: str = ""
    """That token's text."""


class Heard(Record):
    """One token of a prompt, as a gate came to it."""

    token: str
    score: float
    """The gate's score of what it had read by then, to two decimals."""
    fired: dict[str, float] = {}
    """Features of its sensors that were active on the token, by number (`site/number`, where it reads several sites)."""


class Transcript(Record):
    """One reply, with what the policy saw and did."""

    id: str
    policy: str
    policy_hash: str = ""
    set: str
    label: Label
    kind: str | None = None
    category: str | None = None
    pair: str | None = None
    family: str | None = None
    goal: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    reply: str
    tokens: int
    finish: Literal["stop", "length"]
    gate: float | None = None
    """The gate's score on the prompt; None where the policy has no gate."""
    open: bool = False
    """Whether the policy acted."""
    edited: int = 0
    """Token positions whose residual stream was edited."""
    hazard: str | None = None
    """Kind of harm that the gate read; None where it tells none apart."""
    last_turn: bool = False
    """Whether the score is that of the last turn by itself, the higher one."""
    dose: float = 1.0
    """How much the policy did, where it acted, relative to its interventions' values."""
    late: int | None = None
    """Reply token, from 0, at which the gate on the reply first opened."""
    trace: tuple[float, ...] = ()
    """What that gate thought at each token of the reply: its smoothed score."""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What was answered, as messages, whichever way it was given."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)

    fired: tuple[Fired, ...] = ()
    heard: tuple[Heard, ...] = ()
    """Token by token, what the gate read of the prompt, or of its last turn where that is its score. Empty where no gate
    reads the stream, where nothing was said, and of attacks that search (GCG, recovery)."""


class Verdict(Record):
    """What a judge says of one transcript."""

    id: str
    policy: str
    set: str
    judge: str
    outcome: Outcome | None = None
    """None where the judge could not say; such a row is counted as not judged, never as any outcome."""
    why: str = ""
    """What decided; where the outcome is None, what went wrong."""
    harmful_prompt: bool | None = None
    """Of judges that say so: whether the request is harmful."""
    harmful_reply: bool | None = None
    """Of judges that say so: whether the reply is harmful."""
