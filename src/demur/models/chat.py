"""From conversations to padded token batches that know which token belongs to whom.

Roles are found by looking for each message's text in the rendered template, so any chat template works; a model without
a template gets the last message as it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from demur.errors import PromptError
from demur.models.load import LanguageModel
from demur.records import Message


class Role(IntEnum):
    """Whose token it is. Only TEMPLATE tokens of the last turn's opening lead over to the reply."""

    PAD = 0
    TEMPLATE = 1
    SYSTEM = 2
    USER = 3
    ASSISTANT = 4


@dataclass(frozen=True)
class Encoded:
    """Prompts as the model takes them, padded on the left; on the right where what follows them is fed with them."""

    ids: Int[Tensor, "batch seq"]
    roles: Int[Tensor, "batch seq"]
    """A `Role` for each token."""

    @property
    def mask(self) -> Int[Tensor, "batch seq"]:
        """1 for tokens, 0 for padding."""
        return (self.roles != Role.PAD).long()

    @property
    def positions(self) -> Int[Tensor, "batch seq"]:
        """Each token's place in its own row, from 0; padding has 0 too."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)

    @property
    def first(self) -> Int[Tensor, " batch"]:
        """The column of each row's first token."""
        return self.mask.argmax(1)


def render(lm: LanguageModel, messages: Sequence[Message]) -> str:
    """The text the model sees: the conversation in its template, then the opening of the reply."""
    if lm.tokenizer.chat_template is None:
        return messages[-1].content
    turns = [m.model_dump() for m in messages]
    return lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def tokens_and_roles(lm: LanguageModel, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of one conversation, ready for its reply, and the `Role` of each.

    Raises:
        PromptError: the prompt leaves no room for a reply in the model's context.
    """
    templated = lm.tokenizer.chat_template is not None
    ids, roles = label(lm, render(lm, messages), messages if templated else messages[-1:], not templated)
    if len(ids) >= lm.context:
        raise PromptError(
            f"a prompt of {len(ids)} tokens does not fit {lm.name}'s context of {lm.context}; shorten it "
            f"({messages[-1].content[:60]!r}…)."
        )
    return ids, roles


def label(
    lm: LanguageModel, text: str, messages: Sequence[Message] | None, special_tokens: bool
) -> tuple[list[int], list[int]]:
    """Token ids of a text and the `Role` of each.

    Whose a token is depends on which message it lies in; without messages, all of the text is the user's. Special
    tokens (BOS and the template's own) are nobody's. `special_tokens` adds those that the tokenizer adds by itself.
    """
    coded = lm.tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
    ids: list[int] = coded["input_ids"]
    spans = [(Role.USER, 0, len(text))] if messages is None else _spans(text, messages)
    special = set(lm.tokenizer.all_special_ids)
    roles = []
    for token, (start, end) in zip(ids, coded["offset_mapping"], strict=True):
        role = next((r for r, a, b in spans if start < b and end > a), Role.TEMPLATE)
        roles.append(int(Role.TEMPLATE if token in special else role))
    return ids, roles


def bare_roles(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
    """The `Role` of each token of a prompt without messages: all of it is the user's but the special tokens."""
    special = set(lm.tokenizer.all_special_ids)
    return [int(Role.TEMPLATE if token in special else Role.USER) for token in ids]


def encode(lm: LanguageModel, conversations: Sequence[Sequence[Message]]) -> Encoded:
    """A left-padded batch of conversations, each ready for its reply."""
    return pad(lm, [tokens_and_roles(lm, c) for c in conversations])


def pad(
    lm: LanguageModel, rows: Sequence[tuple[list[int], list[int]]], side: Literal["left", "right"] = "left"
) -> Encoded:
    """Rows of ids and roles as one batch, padded on one side, on the model's device."""
    width = max(len(ids) for ids, _ in rows)

    def filled(row: list[int], blank: int) -> list[int]:
        blanks = [blank] * (width - len(row))
        return blanks + row if side == "left" else row + blanks

    ids = torch.tensor([filled(i, lm.tokenizer.pad_token_id) for i, _ in rows])
    roles = torch.tensor([filled(r, int(Role.PAD)) for _, r in rows])
    return Encoded(ids.to(lm.device), roles.to(lm.device))


def _spans(text: str, messages: Sequence[Message]) -> list[tuple[Role, int, int]]:
    roles = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
    spans, start = [], 0
    for message in messages:
        # Templates strip the text they are given; some fold the system's turn into the user's.
        content = message.content.strip()
        at = text.find(content, start)
        if content and at >= 0:
            spans.append((roles[message.role], at, at + len(content)))
            start = at + len(content)
    return spans
