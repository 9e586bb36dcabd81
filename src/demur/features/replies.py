"""Replies from which refusing is learnt: what the plain model says to harmful prompts, and refusals that we wrote."""

import itertools
from collections.abc import Sequence

import torch

from demur.activations.harvest import read
from demur.data.refusals import refusals
from demur.features.effect import Bench, Conversation, answers
from demur.models.chat import tokens_and_roles
from demur.records import Message, Prompt, Record
from demur.steering.policies import NONE

BEGINNING = 6
"""First tokens of a refusal by which it is known; what follows is hardly about refusing."""


class Replies(Record):
    """Harmful prompts with what the plain model answers and how it would refuse, as token ids."""

    conversations: tuple[tuple[Message, ...], ...]
    plain: list[list[int]]
    refused: list[bool]
    """Whether the plain model refused by itself."""
    ours: list[list[int]]
    """Refusals that we wrote, one for each prompt."""


def both_replies(bench: Bench, prompts: Sequence[Prompt], seed: int) -> Replies:
    """What the plain model answers to harmful prompts, and refusals that we wrote in its place."""
    plain = answers(bench, [(NONE, p) for p in prompts], max_new_tokens=48, what="answering harmful prompts")
    tokens = [
        bench.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in [*(a.text or " " for a in plain), *itertools.islice(refusals(seed), len(prompts))]
    ]
    return Replies(
        conversations=tuple(tuple(p.conversation) for p in prompts),
        plain=tokens[: len(prompts)],
        refused=[a.outcome == "refused" for a in plain],
        ours=tokens[len(prompts) :],
    )


def sentences(bench: Bench, openings: Sequence[str]) -> list[list[int]]:
    """The openings as token ids."""
    return [bench.lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in openings]


def beginnings(bench: Bench, openings: Sequence[str]) -> list[list[int]]:
    """The first tokens of each opening, by which a refusal is known; none twice."""
    return [list(b) for b in dict.fromkeys(tuple(said[:BEGINNING]) for said in sentences(bench, openings))]


def usual_norm(bench: Bench, conversations: Sequence[Conversation]) -> float:
    """The residual stream's usual norm at the last prompt token, which writes the first word of the reply."""
    last = []
    for conversation in conversations[:16]:
        ids = torch.tensor([tokens_and_roles(bench.lm, conversation)[0]], device=bench.lm.device)
        last.append(read(bench.lm, [bench.sae.config.site], ids)[bench.sae.config.site][0, -1].norm())
    return float(torch.stack(last).median())
