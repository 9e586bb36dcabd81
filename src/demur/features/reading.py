"""Features read on prompts: what a gate would see, for many prompts at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from demur.activations.harvest import read
from demur.models.chat import Role, tokens_and_roles
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Message
from demur.sae.sae import SAE
from demur.steering.session import TAIL

POOL = {"max": lambda f: f.amax(0), "mean": lambda f: f.mean(0), "last": lambda f: f[-1]}


def read_prompts(
    lm: LanguageModel,
    sae: SAE,
    conversations: Sequence[Sequence[Message]],
    pooling: Sequence[str],
    batch: int = 32,
    residual: Sequence[str] = (),
) -> dict[str, Float[Tensor, "prompts width"]]:
    """Every feature's activation on every prompt, pooled as `pooling` says (max, mean, last), in the SAE's units.

    Reads the tokens that a gate reads: the conversation's own and the last of the template's. `residual` names ways to
    pool the stream itself, in the same pass, which are found under "residual mean" and the like.
    """
    rows = []
    for ids, roles in (tokens_and_roles(lm, c) for c in conversations):
        own = [role in (Role.USER, Role.ASSISTANT) for role in roles]
        own[-TAIL:] = [True] * len(own[-TAIL:])
        rows.append((ids, own))
    return _pooled(lm, sae, rows, pooling, batch, residual, "reading prompts")


def read_said(
    lm: LanguageModel,
    sae: SAE,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[list[int]],
    pooling: Sequence[str],
    batch: int = 32,
    residual: Sequence[str] = (),
) -> dict[str, Float[Tensor, "replies width"]]:
    """The same on replies (token ids, at least one each): the tokens from which the words of the reply are written."""
    rows = []
    for conversation, reply in zip(conversations, replies, strict=True):
        ids = tokens_and_roles(lm, conversation)[0]
        rows.append(((ids + reply)[:-1], [False] * (len(ids) - 1) + [True] * len(reply)))
    return _pooled(lm, sae, rows, pooling, batch, residual, "reading replies")


def _pooled(
    lm: LanguageModel,
    sae: SAE,
    rows: Sequence[tuple[list[int], list[bool]]],
    pooling: Sequence[str],
    batch: int,
    residual: Sequence[str],
    what: str,
) -> dict[str, Tensor]:
    # Rows of token ids and whether each token is read.
    pools = {p: torch.zeros(len(rows), sae.config.d_sae) for p in pooling}
    raw = {p: torch.zeros(len(rows), sae.config.d_model) for p in residual}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    with bar(what, len(order)) as progress:
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            width = len(rows[group[-1]][0])
            # Padding on the right needs no mask: no token sees what follows it.
            ids = torch.tensor([rows[i][0] + [0] * (width - len(rows[i][0])) for i in group], device=lm.device)
            hidden = read(lm, [sae.config.site], ids)[sae.config.site]
            read_here = torch.tensor([rows[i][1] + [False] * (width - len(rows[i][1])) for i in group])
            x, counts = hidden[read_here.to(hidden.device)], read_here.sum(1).tolist()
            for values, into in ((sae.encode(x), pools), (x, raw)):
                for i, tokens in zip(group, values.split(counts), strict=True):
                    for p in into:
                        into[p][i] = POOL[p](tokens)
            progress.step(len(group))
    return pools | {f"residual {p}": values for p, values in raw.items()}
