"""The requests of a model runner as rows of one session: the adapter of the flat core to vLLM's packed batches.

vLLM packs the tokens of all requests into `[tokens, d_model]`, prompts in chunks and replies token by token as they
come. A row keeps what its gate has read from chunk to chunk; a request that vLLM begins anew (after it was preempted)
is read anew. No prompt is taken from the prefix cache (`asking.py` sees to it), so a gate reads all of it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demur.models.chat import Encoded
from demur.models.load import LanguageModel
from demur.records import Policy
from demur.server.offer import Offer
from demur.server.vllm.fitness import check_policies
from demur.server.vllm.options import Options
from demur.steering.session import Session


@dataclass(eq=False)
class Held:
    """A request that has a row."""

    policy: Policy
    prompt: Encoded
    row: int
    fed: int = 0
    """Tokens that went through the model."""
    told: bool = False
    """Whether what happened to it was asked for."""
    over: bool = False
    """Whether vLLM has dropped it."""


@dataclass(frozen=True)
class Pass:
    """The tokens of held requests in one pass."""

    where: Int[Tensor, " tokens"]
    """Their places in the packed batch."""
    row: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    replying: bool
    """Whether none of them is of a prompt."""


class Rows:
    """The session of one model runner."""

    def __init__(self, lm: LanguageModel, options: Options, most: int, chunked: bool) -> None:
        """For so many requests at a time; as many again may have ended and not been asked about.

        Raises:
            PolicyError, SAEError, FileError: a policy that cannot be used with the model.
        """
        self.saes: dict = {}
        self.offer = Offer(lm, self.saes, options.policies, options.card, options.saes)
        check_policies((e.policy for e in self.offer.entries.values()), chunked)
        self.lm, self.most = lm, 2 * most
        self.device = next(lm.model.parameters()).device
        self.session = Session(lm, self.saes, [], None, self.most)
        self.free = deque(range(self.most))
        self.held: dict[str, Held] = {}
        self.scheduled: Mapping[str, int] = {}
        """Tokens of each request in the pass that is being prepared."""
        self.now: Pass | None = None

    @property
    def sites(self) -> list[str]:
        """Where a policy on offer reads or edits."""
        found = set()
        for entry in self.offer.entries.values():
            found |= {i.site for i in entry.policy.interventions}
            found |= set(entry.policy.gate.sites if entry.policy.gate else ())
        return sorted(found)

    @torch.inference_mode()
    def join(self, request: str, ids: Sequence[int], wish: Mapping[str, Any]) -> None:
        """A request that is new: its prompt, and what `asking.py` says of it."""
        picked = self.offer.pick(self.lm.name, wish["policy"], wish["level"], wish["kinds"])
        prompt = Encoded(
            torch.tensor([list(ids)], device=self.device), torch.tensor([list(wish["roles"])], device=self.device)
        )
        if request in self.held:
            self._drop(request)
        held = self.held[request] = Held(picked.policy, prompt, self._row())
        self.session.admit([held.row], [held.policy], held.prompt)

    @torch.inference_mode()
    def end(self, requests: Sequence[str]) -> None:
        """Requests that vLLM has dropped; they keep their rows until they were asked about, or others need them."""
        for request in requests:
            if (held := self.held.get(request)) is not None:
                held.over = True
                if held.told:
                    self._drop(request)

    @torch.inference_mode()
    def begin(self, requests: Sequence[str], counts: Sequence[int], starts: Sequence[int]) -> None:
        """A pass is about to be made: so many tokens of each request, in order, the first at this position of its own.

        Raises:
            RuntimeError: tokens of a request were passed over, so that its gate cannot have read them.
        """
        where: list[int] = []
        row: list[int] = []
        position: list[int] = []
        replying, at = True, 0
        for request, count, start in zip(requests, counts, starts, strict=True):
            if count and (held := self.held.get(request)) is not None:
                self._follow(request, held, start)
                held.fed = start + count
                where += range(at, at + count)
                row += [held.row] * count
                position += range(start, start + count)
                replying = replying and start >= held.prompt.ids.shape[1]
            at += count
        places, rows, positions = (torch.tensor(column, device=self.device) for column in (where, row, position))
        self.now = Pass(places, rows, positions, replying) if where else None

    def done(self) -> None:
        """The pass was made."""
        self.now = None

    @torch.inference_mode()
    def edit(self, site: str, output: Any) -> Any:
        """What a block should return instead of its output; None where nothing changes.

        vLLM's blocks return the stream, or two parts whose sum it is: what the block adds last, and the rest. Only tokens
        that change are touched; of these the first part becomes the whole stream and the second nothing, so that nothing
        is rounded twice.
        """
        if self.now is None or (self.now.replying and self.session.is_idle(site)):
            return None
        where = self.now.where
        x = stream(output, where)
        new = self.session.edit(site, x, self.now.row, self.now.position)
        if new is None:
            return None
        changed = (new != x).any(1)
        return replaced(output, where[changed], new[changed])

    @torch.inference_mode()
    def report(self, requests: Sequence[str], tokens: Sequence[int]) -> list[dict | None]:
        """What the session says of requests whose replies have so many tokens, as JSON has it; None of unknown ones."""
        found: list[dict | None] = []
        for request, count in zip(requests, tokens, strict=True):
            if (held := self.held.get(request)) is None:
                found.append(None)
                continue
            seen = self.session.report(held.row, count)
            seen["fired"] = [f.model_dump() for f in seen["fired"]]
            seen["trace"] = list(seen.get("trace", ()))
            found.append(seen)
            held.told = True
            if held.over:
                self._drop(request)
        return found

    def _follow(self, request: str, held: Held, start: int) -> None:
        if start == held.fed:
            return
        if start:
            raise RuntimeError(
                f"request {request} goes on at token {start} where {held.fed} were read, so its gate cannot decide; "
                "this is a fault of demur's plug-in or a setting of vLLM that it does not know."
            )
        self.session.admit([held.row], [held.policy], held.prompt)

    def _row(self) -> int:
        if not self.free:
            self._drop(next(request for request, held in self.held.items() if held.over))
        return self.free.popleft()

    def _drop(self, request: str) -> None:
        row = self.held.pop(request).row
        self.session.leave([row])
        self.free.append(row)


def stream(output: Any, where: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens d_model"]:
    """The residual stream behind a block, at some places of the batch."""
    if isinstance(output, Tensor):
        return output[where]
    hidden, rest = output
    return hidden[where] if rest is None else hidden[where] + rest[where]


def replaced(output: Any, where: Int[Tensor, " tokens"], new: Float[Tensor, "tokens d_model"]) -> Any:
    """The block's output with another stream at these places."""
    if isinstance(output, Tensor):
        return output.index_copy(0, where, new)
    hidden, rest = output
    return hidden.index_copy(0, where, new), None if rest is None else rest.index_fill(0, where, 0)


def check_output(output: Any, d_model: int) -> bool:
    """Whether a block's output is of a form that `stream` reads."""
    parts = output if isinstance(output, tuple) else (output,)
    if not 1 <= len(parts) <= 2 or (isinstance(output, tuple) and len(parts) != 2):
        return False
    return all(p is None or (isinstance(p, Tensor) and p.ndim == 2 and p.shape[1] == d_model) for p in parts) and (
        parts[0] is not None
    )
