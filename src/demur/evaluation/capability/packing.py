"""Choices that share a context, scored in one row: the context once, then each choice, none seeing another.

Not to the bit what a row for each choice gives, but to rounding, with a fraction of the tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOKENS = {"cpu": 1024}
MANY_TOKENS = 8192
"""Columns that a batch may have in all, on a CPU, which more do not make faster, and elsewhere."""


@dataclass(frozen=True)
class Row:
    """One context and continuation, and the requests that it answers (they differ in the last token alone)."""

    kind: str
    context: str
    prompt: tuple[list[int], list[int]]
    """Tokens of the context and their roles: what the gate reads. They begin the row."""
    tokens: list[int]
    """Context and continuation."""
    scored: int
    """Tokens of the continuation, of which a few may belong to the prompt: lm-eval moves white space over."""
    requests: list[int]

    @property
    def tail(self) -> list[int]:
        """What is fed behind the prompt; the last token predicts nothing that is scored."""
        return self.tokens[len(self.prompt[0]) : -1]


def packs(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows by prompt, longest packs first."""
    found: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.prompt[0]), []).append(row)
    return sorted(found.values(), key=lambda pack: -width(pack))


def width(pack: Sequence[Row]) -> int:
    """Columns that a pack takes."""
    return len(pack[0].prompt[0]) + sum(len(row.tail) for row in pack)


def batches(together: Sequence[list[Row]], size: int, device: str) -> Iterator[list[list[Row]]]:
    """Packs, longest first, at most `size` at a time, fewer where they are long; where there are enough of them, the
    shortest of a batch is not much shorter than the longest.
    """
    tokens = TOKENS.get(device, MANY_TOKENS)
    batch: list[list[Row]] = []
    for pack in together:
        widest = width(batch[0]) if batch else 0
        full = len(batch) == size or (len(batch) + 1) * widest > tokens
        if batch and (full or (width(pack) < 0.85 * widest and len(batch) * widest > 0.4 * tokens)):
            yield batch
            batch = []
        batch.append(pack)
    if batch:
        yield batch


def columns(pack: Sequence[Row]) -> list[list[int]]:
    """For each row of a pack the columns that predict its scored tokens, in order."""
    found, start = [], len(pack[0].prompt[0])
    for row in pack:
        n = len(row.prompt[0])
        behind = range(len(row.tokens) - row.scored - 1, len(row.tokens) - 1)
        found.append([at if at < n else start + at - n for at in behind])
        start += len(row.tail)
    return found


def packed(
    batch: Sequence[Sequence[Row]], like: Tensor
) -> tuple[Int[Tensor, "batch seq"], Float[Tensor, "batch 1 seq seq"], Int[Tensor, "batch seq"]]:
    """Token ids, additive attention mask (of the kind of `like`) and positions of packs, padded on the right."""
    seq = max(width(pack) for pack in batch)
    ids, positions, part = (torch.zeros(len(batch), seq, dtype=torch.long) for _ in range(3))
    for i, pack in enumerate(batch):
        prompt = pack[0].prompt[0]
        ids[i, : len(prompt)] = torch.tensor(prompt)
        positions[i, : len(prompt)] = torch.arange(len(prompt))
        start = len(prompt)
        for number, row in enumerate(pack, 1):
            end = start + len(row.tail)
            ids[i, start:end] = torch.tensor(row.tail, dtype=torch.long)
            positions[i, start:end] = torch.arange(len(prompt), len(prompt) + len(row.tail))
            part[i, start:end] = number
            start = end
        part[i, start:] = -1
    return ids.to(like.device), by_part(part, like), positions.to(like.device)


def by_part(part: Int[Tensor, "batch seq"], like: Tensor) -> Float[Tensor, "batch 1 seq seq"]:
    """The additive attention mask by which each token sees the prompt (part 0) and its own part, up to itself."""
    seen = ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])).tril()
    mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)
    return mask[:, None].to(like.device)
