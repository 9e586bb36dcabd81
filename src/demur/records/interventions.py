"""Interventions: what a policy does to the residual stream."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from demur.records.record import Record

Operation = Literal["clamp", "clamp_min", "scale", "add", "ablate"]
Positions = Literal["reply", "user", "prompt", "all"]


class Edit(Record):
    """One operation on one feature.

    `value` is the activation to clamp to, the amount to add (both in the SAE's units) or the factor to scale by;
    ablate takes none.
    """

    feature: int = Field(ge=0)
    operation: Operation
    value: float = 0.0


class Push(Record):
    """One operation with a vector of the policy's own, which need not be an SAE's: what dense methods do.

    add: `x + value · v`. project: set the projection on `v` to `value`. map: `x + value · (x_last @ M)`, where `M` is
    `[d_model, d_model]` and `x_last` the residual stream at the last prompt token.
    """

    vector: str
    """Name in the safetensors file beside the policy's."""
    operation: Literal["add", "project", "map"]
    value: float = 1.0


class Intervention(Record):
    """What a policy does to the residual stream at one site: edits of SAE features, then pushes, in order."""

    site: str
    edits: tuple[Edit, ...] = ()
    pushes: tuple[Push, ...] = ()
    positions: Positions = "reply"
    """reply: from the last prompt token on; user: the user's tokens too; all: all but BOS, system and role tokens;
    prompt: every token of the prompt and none of the reply."""
    keep_error: bool = True
    """Keep what the SAE does not reconstruct; False is the plain encode-edit-decode splice."""
    norm: float | None = Field(default=None, gt=0)
    """The values are meant for a stream of this norm, and scaled at each token by its own; None: as they are."""
    cap: float | None = Field(default=None, gt=0)
    """Longest change, as a share of the token's norm."""
    off: str = ""
    """Name of an orthonormal basis `[rank, d_model]` among the policy's vectors: the change is made outside of it."""
    onset: int = Field(default=0, ge=0)
    """Tokens of the reply over which the dose rises to 1, from `1 / (onset + 1)` at the first."""
    hold: int | None = Field(default=None, ge=0)
    """Tokens of the reply, from the first that is edited, after which the dose falls; None: it does not."""
    decay: int = Field(default=0, ge=0)
    """Tokens over which it falls to nothing after that."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.edits and not self.pushes and self.keep_error:
            raise ValueError("an intervention needs edits, pushes, or keep_error = false")
        return self

    @property
    def is_even(self) -> bool:
        """Whether the dose is the same at every token that is edited."""
        return self.onset == 0 and self.hold is None

    @property
    def needs_sae(self) -> bool:
        """Whether it reads or writes features."""
        return bool(self.edits) or not self.keep_error

    @field_validator("edits")
    @classmethod
    def _each_feature_once(cls, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        ids = [e.feature for e in edits]
        if len(set(ids)) != len(ids):
            raise ValueError("a feature may be edited once per intervention")
        return edits
