"""Reading the residual stream: the model runs up to the last site asked for, and no further."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demur.models.hooks import Halt, at_blocks, halted
from demur.models.load import LanguageModel


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
