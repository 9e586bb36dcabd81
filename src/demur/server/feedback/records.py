"""What the store of answers and appeals holds, and gives back."""

from typing import Literal

from demur.records import Message
from demur.records.record import Record

Decision = Literal["upheld", "rejected"]
"""upheld: the refusal was wrong; rejected: it stands."""
State = Literal["open", "upheld", "rejected", "lapsed"]
"""lapsed: nobody decided before its text had to be deleted."""
Rating = Literal["good", "bad"]


class Answer(Record):
    """A refused answer, kept so that it can be appealed against."""

    id: str
    owner: str
    """Whose request it was: the name of a key, or `local` where there are none; empty once the text is deleted."""
    created: float
    """Seconds since 1970, as all times here."""
    model: str
    policy: str
    policy_hash: str
    level: str = ""
    gate: float | None = None
    """The gate's score on the prompt."""
    kind: str | None = None
    """Kind of harm that the gate read, as in the taxonomy."""
    messages: tuple[Message, ...] | None = None
    """What was asked; None once the text is deleted, as in all texts here."""
    reply: str | None = None


class Appeal(Record):
    """A user's contest of a refused answer, and what became of it."""

    id: str
    answer: str
    owner: str
    created: float
    argument: str | None = None
    state: State = "open"
    decided: float | None = None
    reviewer: str | None = None
    note: str | None = None


class Case(Record):
    """An appeal with the answer that it is about: what a reviewer sees."""

    appeal: Appeal
    answer: Answer


class Feedback(Record):
    """What somebody thought of an answer, refused or not."""

    id: str
    answer: str
    owner: str
    created: float
    rating: Rating
    comment: str | None = None


class Tally(Record):
    """Refused answers and what became of appeals against them."""

    refused: int = 0
    appeals: int = 0
    open: int = 0
    upheld: int = 0
    rejected: int = 0
    lapsed: int = 0


class Statistics(Record):
    """What anybody may know: counts, no text."""

    since: float | None = None
    """When the first answer was kept."""
    every: Tally
    kinds: dict[str, Tally]
    """By kind of harm; `unspecified` where the gate tells none apart."""
    good: int = 0
    """Feedback."""
    bad: int = 0
