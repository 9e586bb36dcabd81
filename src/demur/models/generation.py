"""Replies, greedy or sampled, in left-padded batches, by transformers' own `generate`."""

import torch
from pydantic import Field

from demur.config import Settings
from demur.errors import PromptError
from demur.models.chat import Encoded
from demur.models.load import LanguageModel


class GenerationSettings(Settings):
    """How replies are made."""

    max_new_tokens: int = Field(default=64, gt=0)
    """Longest reply, in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy; above, tokens are sampled."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens that has this much probability."""
    seed: int = 0
    """Seed of the sampling."""


def end_tokens(lm: LanguageModel) -> list[int]:
    """The tokens that end a reply."""
    stated = lm.model.generation_config.eos_token_id
    stated = stated if isinstance(stated, list) else [stated]
    return sorted({t for t in [*stated, lm.tokenizer.eos_token_id] if t is not None})


@torch.inference_mode()
def reply_tokens(lm: LanguageModel, prompts: Encoded, settings: GenerationSettings) -> list[list[int]]:
    """One reply per prompt: its tokens up to and including the one that ends it, if one does.

    Raises:
        PromptError: prompt and reply together would not fit the context.
    """
    width = prompts.ids.shape[1]
    if width + settings.max_new_tokens > lm.context:
        raise PromptError(
            f"a prompt of {width} tokens and a reply of {settings.max_new_tokens} do not fit {lm.name}'s context of "
            f"{lm.context}; shorten the prompt or lower --max-new-tokens."
        )
    sampled = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature else {}
    ends = end_tokens(lm)
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        out = lm.model.generate(
            input_ids=prompts.ids,
            attention_mask=prompts.mask,
            max_new_tokens=settings.max_new_tokens,
            do_sample=bool(sampled),
            pad_token_id=lm.tokenizer.pad_token_id,
            eos_token_id=ends,
            **sampled,
        )
    return [_until_end(row, ends) for row in out[:, width:].tolist()]


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1]


def text_of(lm: LanguageModel, tokens: list[int]) -> str:
    """A reply's text, without the tokens that are not text."""
    return lm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
