"""Reading the residual stream at several sites, without an SAE: what dense methods learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from demur.activations.harvest import read, read_in_passes
from demur.models.chat import Role, tokens_and_roles
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Message
from demur.steering.session import TAIL


@dataclass(frozen=True)
class Prompted:
    """The stream at one site on some prompts."""

    last: Float[Tensor, "prompts d_model"]
    """At the last prompt token, which writes the first word of the reply."""
    mean: Float[Tensor, "prompts d_model"]
    """Mean over the tokens that a gate reads: the conversation's own and the last of the template's."""


def read_dense(
    lm: LanguageModel, sites: Sequence[str], conversations: Sequence[Sequence[Message]], batch: int = 32
) -> dict[str, Prompted]:
    """The stream at each site on every prompt, in their order."""
    shape = (len(conversations), lm.d_model)
    found = {site: Prompted(torch.zeros(shape), torch.zeros(shape)) for site in sites}
    coded = [tokens_and_roles(lm, c) for c in conversations]
    for group, streams in read_in_passes(lm, sites, [ids for ids, _ in coded], batch, "reading prompts"):
        for site, hidden in streams.items():
            for row, i in enumerate(group):
                roles = torch.tensor(coded[i][1])
                own = (roles == Role.USER) | (roles == Role.ASSISTANT)
                own[-TAIL:] = True
                stream = hidden[row, : len(roles)].float().cpu()
                found[site].last[i] = stream[-1]
                found[site].mean[i] = stream[own].mean(0)
    return found


def read_dense_replies(
    lm: LanguageModel, sites: Sequence[str], conversations: Sequence[Sequence[Message]], replies: Sequence[list[int]]
) -> Mapping[str, Float[Tensor, "replies d_model"]]:
    """Mean of the stream over each teacher-forced reply (token ids), from the token that writes its first word on."""
    found = {site: torch.zeros(len(replies), lm.d_model) for site in sites}
    with bar("reading replies", len(replies)) as progress:
        for i, (conversation, reply) in enumerate(zip(conversations, replies, strict=True)):
            ids = tokens_and_roles(lm, conversation)[0]
            whole = torch.tensor([ids + reply], device=lm.device)
            for site, hidden in read(lm, sites, whole).items():
                found[site][i] = hidden[0, len(ids) - 1 : -1].float().mean(0).cpu()
            progress.step()
    return found
