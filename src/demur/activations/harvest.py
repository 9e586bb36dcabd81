"""Reading the residual stream: the model runs up to the last site asked for, and no further."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demur.models.hooks import Halt, at_blocks, halted
from demur.models.load import LanguageModel
from demur.models.memory import keep_freed_memory
from demur.progress import bar


@torch.inference_mode()
def read(
    lm: LanguageModel,
    sites: Sequence[str],
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"] | None = None,
    positions: Int[Tensor, "batch seq"] | None = None,
) -> Mapping[str, Float[Tensor, "batch seq d_model"]]:
    """The residual stream at each site. Blocks behind the last site and the language-model head are not run.

    Masks and positions are needed for rows padded on the left only (`LanguageModel.logits`).
    """
    found: dict[str, Tensor] = {}

    def keep(site: str):
        def handler(hidden: Tensor) -> None:
            found[site] = hidden
            if len(found) == len(sites):
                raise Halt

        return handler

    with at_blocks({lm.block(site): keep(site) for site in sites}), halted():
        lm.logits(ids, mask, positions, last=1)
    return found


def read_in_passes(
    lm: LanguageModel, sites: Sequence[str], rows: Sequence[Sequence[int]], batch: int, what: str
) -> Iterator[tuple[list[int], Mapping[str, Float[Tensor, "batch seq d_model"]]]]:
    """The same of any number of rows of token ids, those of like length together: which rows a pass is of, and the
    streams. A bar says `what` is being done.
    """
    keep_freed_memory(lm.device)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with bar(what, len(order)) as progress:
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            width = len(rows[group[-1]])
            # Padding on the right needs no mask: no token sees what follows it.
            ids = torch.tensor([[*rows[i], *[0] * (width - len(rows[i]))] for i in group], device=lm.device)
            yield group, read(lm, sites, ids)
            progress.step(len(group))
