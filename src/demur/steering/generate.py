"""Steered replies, batch by batch; and what gates say of prompts without a reply."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from demur.models.chat import Role, pad, tokens_and_roles
from demur.models.generation import GenerationSettings, end_tokens, reply_tokens, text_of
from demur.models.hooks import Halt, at_blocks, halted
from demur.models.load import LanguageModel
from demur.records import Message, Policy
from demur.sae.sae import SAE
from demur.steering.session import steer

USUAL = 160
"""Tokens of prompt and reply that a row of a full batch may have; longer ones go in smaller batches, since the whole
cache is copied at every token."""


@dataclass(frozen=True)
class Reply:
    """A reply and what the policy saw and did."""

    text: str
    tokens: int
    finish: str
    """stop or length."""
    steering: dict
    """gate, open, edited, fired: as in a transcript."""


def generate(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    conversations: Sequence[Sequence[Message]],
    policies: Sequence[Policy],
    settings: GenerationSettings,
    batch: int = 64,
    words: bool = False,
) -> Iterator[tuple[int, Reply]]:
    """Replies as they are made, with the number of the conversation; those of like length go together.

    At most `batch` at a time, fewer where they are long. With `words`, `Reply.steering` says token by token what the gate
    thought (`heard`, as in a transcript).

    Raises:
        PromptError: a prompt that does not fit the context, before anything is generated.
        PolicyError, SAEError: a policy that does not fit.
    """
    talk = [p.conversation(c) for p, c in zip(policies, conversations, strict=True)]
    coded = [tokens_and_roles(lm, c) for c in talk]
    silent = dict(_canned(lm, saes, conversations, policies, batch, words))
    yield from silent.items()
    order = sorted((i for i in range(len(coded)) if i not in silent), key=lambda i: -len(coded[i][0]))
    ends = end_tokens(lm)
    start = 0
    while start < len(order):
        longest = len(coded[order[start]][0]) + settings.max_new_tokens
        group = order[start : start + max(1, min(batch, batch * USUAL // longest))]
        start += len(group)
        prompts = pad(lm, [coded[i] for i in group])
        with steer(lm, saes, [policies[i] for i in group], prompts, words) as session:
            replies = reply_tokens(lm, prompts, settings)
        for row, (i, tokens) in enumerate(zip(group, replies, strict=True)):
            finish = "stop" if tokens and tokens[-1] in ends else "length"
            yield i, Reply(text_of(lm, tokens), len(tokens), finish, session.report(row, len(tokens)))


def _canned(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    conversations: Sequence[Sequence[Message]],
    policies: Sequence[Policy],
    batch: int,
    words: bool,
) -> Iterator[tuple[int, Reply]]:
    # Where a policy answers with a fixed text, there is nothing to generate once its gate has opened.
    for policy in {p.hash: p for p in policies if p.canned}.values():
        mine = [i for i, p in enumerate(policies) if p.hash == policy.hash]
        length = len(lm.tokenizer(policy.canned, add_special_tokens=False)["input_ids"])
        seen_of = decide(lm, saes, [conversations[i] for i in mine], policy, batch, words=words)
        for i, seen in zip(mine, seen_of, strict=True):
            if seen["open"]:
                yield i, Reply(policy.canned, length, "stop", seen)


def decide(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    conversations: Sequence[Sequence[Message]],
    policy: Policy,
    batch: int = 64,
    replies: Sequence[Sequence[int]] = (),
    words: bool = False,
) -> list[dict]:
    """What the policy's gate says of each conversation, as `Reply.steering` of a reply that was not begun.

    Only the blocks up to the gate's last site are run. A policy without a gate acts on every prompt. With `replies`
    (token ids), a gate on the reply reads them too: what it would have thought of them, had the model said them.
    `words` as in `generate`.
    """
    coded = [tokens_and_roles(lm, policy.conversation(c)) for c in conversations]
    return decide_rows(lm, saes, coded, policy, batch, replies, words)


@torch.inference_mode()
def decide_rows(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    coded: Sequence[tuple[list[int], list[int]]],
    policy: Policy,
    batch: int = 64,
    replies: Sequence[Sequence[int]] = (),
    words: bool = False,
) -> list[dict]:
    """As `decide`, of prompts that are token ids and their roles already."""
    if policy.gate is None:
        return [{"gate": None, "open": policy.acts, "edited": 0, "fired": ()} for _ in coded]

    def stop(_hidden: torch.Tensor) -> None:
        raise Halt

    reading = (policy if replies else policy.prompt_only).model_copy(update={"interventions": ()})
    assert reading.gate is not None
    said = replies or [()] * len(coded)
    found: dict[int, dict] = {}
    order = sorted(range(len(coded)), key=lambda i: -len(coded[i][0]) - len(said[i]))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        rows = [(coded[i][0] + list(said[i]), coded[i][1] + [int(Role.PAD)] * len(said[i])) for i in group]
        prompts = pad(lm, rows, "right")
        with steer(lm, saes, [reading] * len(group), prompts, words) as session:
            if reading.gate.sites:  # a guard was asked already
                with at_blocks({lm.block(reading.gate.sites[-1]): stop}), halted():
                    lm.logits(prompts.ids, last=1)
            # Of a reply that is generated the last token is never fed back; of these every one was read.
            found |= {i: session.report(row, len(said[i]) + bool(said[i])) for row, i in enumerate(group)}
    return [found[i] for i in range(len(coded))]
