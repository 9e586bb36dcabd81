"""Rows that come and go, each with its own policy, in one pass a token: the model, its cache and one session.

This is the adapter of the session's flat core to continuous batches. Prompts that come together are read in one pass,
padded on the left; from then on every row is fed its last token, all in one pass, whatever their lengths.
"""

import inspect
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from demur.errors import ModelError
from demur.models.chat import Encoded, pad
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.records import Policy
from demur.sae.sae import SAE
from demur.server.window import Window
from demur.steering.session import Session

Coded = tuple[list[int], list[int]]
"""Token ids of a prompt, and the `Role` of each."""


class BrokenBatchError(RuntimeError):
    """What is held of the rows in use may be wrong: none of them may go on."""


class Batch:
    """The rows in use, in order; when one leaves, the last takes its place."""

    def __init__(self, lm: LanguageModel, saes: Mapping[str, SAE], rows: int) -> None:
        accepted = inspect.signature(lm.model.forward).parameters
        kinds = getattr(lm.model.config.get_text_config(), "layer_types", None) or []
        if "past_key_values" not in accepted or any("attention" not in k or "linear" in k for k in kinds):
            raise ModelError(
                f"{lm.name} does not keep keys and values of attention alone, so its rows cannot come and go; "
                "`demur serve` takes models of attention layers."
            )
        self.lm, self.accepted = lm, accepted
        self.window = Window(rows)
        self.session = Session(lm, saes, [], None, rows)
        self.slots: list[int] = []
        """Row of the session that each row has."""
        self.free = list(range(rows))

    def __len__(self) -> int:
        return len(self.slots)

    def join(
        self, prompts: Sequence[Coded], policies: Sequence[Policy], whole: bool = False
    ) -> Float[Tensor, "rows kept vocab"]:
        """Rows behind those in use; gives the logits after their prompts, with `whole` those at every column.

        Raises:
            PolicyError, SAEError: a policy that cannot be used here; then no row has joined.
            BrokenBatchError: keys and values could not be put beside the others'.
        """
        coded = pad(self.lm, [(list(ids), list(roles)) for ids, roles in prompts])
        slots = self.free[: len(prompts)]
        cache = DynamicCache()
        try:
            self.session.admit(slots, policies, coded)
            logits = self._pass(coded.ids, _own_positions(coded), coded.mask, cache, slots, None if whole else 1)
        except BaseException:
            self.session.leave(slots)
            raise
        try:
            self.window.join(cache, coded.mask.sum(1).tolist())
        except Exception as error:
            raise BrokenBatchError("the window of keys and values was left half-way") from error
        self.free, self.slots = self.free[len(slots) :], [*self.slots, *slots]
        return logits

    def step(self, tokens: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Feeds every row its next token; gives the logits after it."""
        self.window.prepare()
        device = self.lm.device
        lengths = torch.tensor(self.window.lengths, device=device)
        wide = self.window.end - self.window.start + 1
        mask = (torch.arange(wide, device=device)[None, :] >= wide - 1 - lengths[:, None]).long()
        ids = torch.tensor(tokens, device=device)[:, None]
        logits = self._pass(ids, lengths[:, None], mask, self.window, self.slots, 1)
        self.window.step()
        return logits[:, -1]

    def leave(self, row: int) -> None:
        """Takes a row out; the last one takes its place."""
        self.window.leave(row)
        slot, self.slots[row] = self.slots[row], self.slots[-1]
        self.slots.pop()
        self.session.leave([slot])
        self.free.append(slot)

    def report(self, row: int, reply_tokens: int) -> dict:
        """What a transcript says of a row."""
        return self.session.report(self.slots[row], reply_tokens)

    def is_late(self, row: int) -> bool:
        """Whether the gate on a row's reply is open."""
        return self.session.is_late(self.slots[row])

    def _pass(
        self,
        ids: Int[Tensor, "rows columns"],
        position: Int[Tensor, "rows columns"],
        mask: Int[Tensor, "rows seen"],
        cache: Cache,
        slots: Sequence[int],
        last: int | None,
    ) -> Float[Tensor, "rows kept vocab"]:
        real = position >= 0
        row = torch.tensor(slots, device=ids.device)[:, None].expand_as(position)[real]
        at = position[real]
        replying = ids.shape[1] == 1 and cache is self.window

        def handler(site: str):
            def adapt(hidden: Tensor) -> Tensor | None:
                if replying and self.session.is_idle(site):
                    return None
                new = self.session.edit(site, hidden[real], row, at)
                if new is None:
                    return None
                out = hidden.clone()
                out[real] = new
                return out

            return adapt

        wanted = {"attention_mask": mask, "position_ids": position.clamp_min(0), "logits_to_keep": last}
        given = {k: v for k, v in wanted.items() if v is not None and k in self.accepted}
        with at_blocks({self.lm.block(site): handler(site) for site in self.session.sites}):
            out = self.lm.model(input_ids=ids, past_key_values=cache, use_cache=True, **given)
        return out.logits[:, -1:] if last else out.logits


def _own_positions(prompts: Encoded) -> Int[Tensor, "batch seq"]:
    # Each token's place in its own row; padding is below 0.
    columns = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
    return columns[None, :] - prompts.first[:, None]
