"""Many trials of one prompt in one row: the prompt once, then for each trial its last token again, and a reply.

Trials differ in what is done to the stream from the last prompt token on, so all that lies before it is the same for
all of them. None sees another. Not to the bit what a row for each trial gives, but to rounding, with a fraction of the
tokens; a model that takes no such mask, or heeds no positions, gets a row for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demur.evaluation.capability.packing import by_part
from demur.features.effect import Bench, Conversation
from demur.models.chat import encode, tokens_and_roles
from demur.models.hooks import at_blocks
from demur.progress import bar
from demur.steering.score import chosen, forced_distributions

COLUMNS = {"cpu": 1024}
MANY_COLUMNS = 8192
"""Columns of a row on a CPU, which more do not make faster, and elsewhere."""

Values = Mapping[int, float]
"""What features are clamped to on the reply, in the SAE's units; none is the plain model."""
Change = Callable[[Float[Tensor, "tokens d_model"], Int[Tensor, " tokens"]], Float[Tensor, "tokens d_model"]]
"""From the stream at the reply's tokens, and the number of the trial that each belongs to, to what takes its place."""


class Branches:
    """A bench on which trials share their prompt."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.packs: bool | None = None
        """Whether the model can score trials in one row: not known before the first."""

    def log_probs(
        self, conversation: Conversation, replies: Sequence[Sequence[int]], change: Change
    ) -> Iterator[Float[Tensor, "tokens vocab"]]:
        """The log-probabilities of the vocabulary before each token of each reply (token ids, at least one).

        Differentiable in what `change` does. Trials are numbered as the replies are.
        """
        ids = tokens_and_roles(self.bench.lm, conversation)[0]
        window = getattr(self.bench.lm.model.config.get_text_config(), "sliding_window", None)
        fits = not window or len(ids) + max(len(r) for r in replies) <= window
        if fits and self.packs is None:
            self.packs = self._can_pack(conversation, ids, [replies[0], replies[-1]])
        if not fits or not self.packs:
            yield from self._apart(conversation, replies, change)
            return
        limit = COLUMNS.get(self.bench.lm.device.type, MANY_COLUMNS)
        start = 0
        while start < len(replies):
            width, end = len(ids) - 1, start
            while end < len(replies) and (end == start or width + len(replies[end]) <= limit):
                width += len(replies[end])
                end += 1
            yield from self._packed(ids, replies[start:end], change, start)
            start = end

    def _packed(self, ids: list[int], replies: Sequence[Sequence[int]], change: Change, start: int) -> list[Tensor]:
        lm = self.bench.lm
        before, last = ids[:-1], ids[-1]
        lengths = [len(r) for r in replies]
        tokens = [t for r in replies for t in (last, *r[:-1])]
        places = [len(before) + i for n in lengths for i in range(n)]
        part = torch.repeat_interleave(torch.arange(1, len(replies) + 1), torch.tensor(lengths))
        whole = torch.cat([torch.zeros(len(before), dtype=torch.long), part])
        which = (part - 1 + start).to(lm.device)

        def handler(hidden: Tensor) -> Tensor:
            new = change(hidden[0, len(before) :], which)
            return torch.cat([hidden[:, : len(before)], new[None].to(hidden)], dim=1)

        with at_blocks({lm.block(self.bench.sae.config.site): handler}):
            logits = lm.logits(
                torch.tensor([before + tokens], device=lm.device),
                by_part(whole[None], next(lm.model.parameters())),
                torch.tensor([[*range(len(before)), *places]], device=lm.device),
                last=len(tokens),
            )
        return list(logits[0].float().log_softmax(-1).split(lengths))

    def _apart(self, conversation: Conversation, replies: Sequence[Sequence[int]], change: Change) -> Iterator[Tensor]:
        lm, size = self.bench.lm, self.bench.batch
        for start in range(0, len(replies), size):
            group = replies[start : start + size]
            asked = encode(lm, [conversation] * len(group))
            first = asked.ids.shape[1] - 1

            def handler(hidden: Tensor, first: int = first, start: int = start) -> Tensor:
                x = hidden[:, first:]
                which = torch.arange(len(x), device=x.device)[:, None].expand(x.shape[:2]) + start
                new = change(x.flatten(0, 1), which.flatten()).view_as(x)
                return torch.cat([hidden[:, :first], new.to(hidden)], dim=1)

            with at_blocks({lm.block(self.bench.sae.config.site): handler}):
                found = forced_distributions(lm, asked, group)
            yield from found

    @torch.no_grad()
    def _can_pack(self, conversation: Conversation, ids: list[int], replies: Sequence[Sequence[int]]) -> bool:
        try:
            together = torch.cat(self._packed(ids, replies, unchanged, 0))
        except Exception:  # whatever a model raises that cannot take a mask of four axes
            return False
        apart = torch.cat(list(self._apart(conversation, replies, unchanged)))
        close = torch.finfo(next(self.bench.lm.model.parameters()).dtype).eps ** 0.5
        return bool((together - apart).norm() <= close * apart.norm())

    # What trials are for.

    def clamping(self, trials: Sequence[Values]) -> Change:
        """What clamps features on the reply, trial by trial: `sae.edit.edit` for many trials at once."""
        sae = self.bench.sae
        used = sorted({f for values in trials for f in values})
        place = {f: j for j, f in enumerate(used)}
        wanted = torch.full((len(trials), len(used)), torch.nan, dtype=torch.float64)
        for i, values in enumerate(trials):
            for f, value in values.items():
                wanted[i, place[f]] = value
        features = torch.tensor(used, dtype=torch.long, device=self.bench.lm.device)

        def change(x: Tensor, which: Tensor) -> Tensor:
            if not used:
                return x
            target = wanted.to(x)[which]
            moved = torch.where(target.isnan(), 0, target - sae.read(x, features))
            return (x + moved @ sae.W_dec[features]).to(x)

        return change

    @torch.inference_mode()
    def refusal_log_odds(
        self,
        trials: Sequence[Values],
        conversations: Sequence[Conversation],
        beginnings: Sequence[Sequence[int]],
        what: str = "scoring features",
    ) -> Float[Tensor, "trials prompts"]:
        """The log-odds that a reply begins as a refusal does, in nats, as `effect.refusal_log_odds` has them."""
        replies = [b for _ in trials for b in beginnings]
        each = self.clamping(trials)
        found = []
        with bar(what, len(conversations)) as progress:
            for conversation in conversations:
                said = self.log_probs(conversation, replies, lambda x, which: each(x, which // len(beginnings)))
                sums = torch.stack([chosen(rows, r).sum() for rows, r in zip(said, replies, strict=True)])
                found.append(odds(sums.view(len(trials), len(beginnings))))
                progress.step()
        return torch.stack(found, dim=1).cpu()

    @torch.inference_mode()
    def first_words(
        self, trials: Sequence[Values], conversations: Sequence[Conversation], what: str = "reading first words"
    ) -> Float[Tensor, "trials vocab"]:
        """Probability of each token as the first of the reply, mean over the conversations."""
        total = torch.zeros(())
        with bar(what, len(conversations)) as progress:
            for conversation in conversations:
                # The token of the reply is only there to be predicted.
                said = self.log_probs(conversation, [[0]] * len(trials), self.clamping(trials))
                total = total + torch.cat(list(said)).exp().cpu()
                progress.step()
        return total / len(conversations)


def unchanged(x: Tensor, which: Tensor) -> Tensor:
    """The plain model."""
    return x


def odds(log_p: Float[Tensor, "... beginnings"]) -> Float[Tensor, "..."]:
    """Log-odds, against everything else that could be said, that one of several beginnings comes, in nats."""
    log_p = log_p.logsumexp(-1)
    return log_p - torch.log1p(-log_p.exp().clamp_max(1 - 1e-6))
