"""Pushes: what dense methods do to the residual stream, along vectors of a policy's own."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.errors import PolicyError
from demur.records import Policy, Push


class Pushes:
    """The pushes of one intervention on one batch, and what they remember of its rows."""

    def __init__(self, policy: Policy, pushes: Sequence[Push], rows: int, like: Tensor) -> None:
        self.name = policy.name
        self.pushes = [(push, torch.as_tensor(policy.vector(push.vector)).to(like)) for push in pushes]
        maps = [v for push, v in self.pushes if push.operation == "map"]
        self.last = torch.full((rows, len(maps[0])), torch.nan, device=like.device, dtype=like.dtype) if maps else None
        """The stream at each row's last prompt token, once it has been seen."""

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        if self.last is not None:
            self.last[rows] = torch.nan

    def see(
        self, x: Float[Tensor, "tokens d_model"], row: Int[Tensor, " tokens"], is_last: Bool[Tensor, " tokens"]
    ) -> None:
        """Remembers the stream at the last prompt tokens, from which maps are fed."""
        if self.last is not None:
            self.last[row[is_last]] = x[is_last]

    def __call__(
        self,
        x: Float[Tensor, "tokens d_model"],
        row: Int[Tensor, " tokens"],
        scale: Float[Tensor, "tokens 1"] | None = None,
    ) -> Float[Tensor, "tokens d_model"]:
        """The stream at these tokens after every push, in order; values are multiplied by `scale`, token by token.

        Raises:
            PolicyError: a map at a token before the row's last prompt token has been seen.
        """
        for push, vector in self.pushes:
            value = push.value if scale is None else push.value * scale
            if push.operation == "add":
                x = x + value * vector
            elif push.operation == "project":
                unit = vector / vector.norm()
                x = x + (value - (x @ unit)[:, None]) * unit
            else:
                assert self.last is not None
                fed = self.last[row]
                if fed.isnan().any():
                    raise PolicyError(
                        f"policy {self.name} maps from the last prompt token to earlier ones, so the prompt has to go "
                        "through the model in one pass; turn chunked prefill off."
                    )
                x = x + value * (fed @ vector)
        return x
