"""What guard models say of the rows of a session: asked once, when a row gets its prompt. They read no reply."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demur.models.chat import Encoded
from demur.models.guard import NOTHING, conversation_of, guard_of
from demur.models.load import LanguageModel
from demur.records import Fired, GuardSensor


class GuardState:
    """A guard's scores of each row of a batch."""

    def __init__(self, rows: int, like: Tensor, precision: torch.dtype) -> None:
        self.found = torch.full((rows,), NOTHING, device=like.device, dtype=precision)

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        self.found[rows] = NOTHING

    def update(self, seen: object) -> None:
        """It reads no stream."""

    def take(self, rows: Int[Tensor, " n"], scores: Float[Tensor, " n"]) -> None:
        """What the guard said of some rows."""
        self.found[rows] = scores.to(self.found)

    def scores(self) -> Float[Tensor, " rows"]:
        """Nats by which the guard rather says that it is unsafe."""
        return self.found

    def fired(self, row: int) -> tuple[Fired, ...]:
        """No features: a guard is another model."""
        return ()


def asked_of(
    lm: LanguageModel, sensor: GuardSensor, prompts: Encoded, places: list[int], since: list[int]
) -> Float[Tensor, " n"]:
    """What a guard says of some of the prompts, from a position on in each (0: of all that was said).

    Raises:
        PolicyError: see `models.guard`.
    """
    talks = []
    for place, start in zip(places, since, strict=True):
        ids, roles = prompts.ids[place], prompts.roles[place]
        position = torch.arange(len(ids), device=ids.device) - prompts.first[place]
        talks.append(conversation_of(lm, ids, roles, position >= start))
    return guard_of(sensor, lm.device).scores(talks)
