"""An answer as the rest of the house hears of it: what was asked, what was said, what the policy saw and did."""

from collections.abc import Awaitable, Callable
from typing import Any

from demur.records import Message
from demur.records.record import Record


class Answered(Record):
    """One finished answer; `id` is the one in the response."""

    id: str
    created: int
    """Seconds since 1970."""
    caller: str
    """Name of the key, `local` without keys."""
    model: str
    """The model id that was asked for."""
    policy: str
    policy_hash: str
    level: str
    messages: tuple[Message, ...]
    """What was asked; of `/v1/completions`, the text as one user's turn."""
    replies: tuple[str, ...]
    """One for each choice."""
    demur: tuple[dict[str, Any], ...]
    """What the answer told of itself, one for each choice (`explaining.Account`)."""


Listener = Callable[[Answered], Awaitable[None]]
"""Hears of every finished answer, before its last byte is sent; what it raises is logged and does not reach the client."""
