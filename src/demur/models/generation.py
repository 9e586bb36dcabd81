"""Replies, greedy or sampled, in left-padded batches, by transformers' own `generate`.

What is drawn for a row depends on the seed and on the row's own prompt, never on what else is in the batch: a run that
goes on after a kill draws what it would have drawn, and two policies meet the same luck.
"""

import hashlib
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from demur.config import Settings
from demur.errors import PromptError
from demur.models.chat import Encoded
from demur.models.load import LanguageModel

TOP_K = 50
"""Most likely tokens that are sampled from; what transformers does unless told otherwise."""


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
    ends = end_tokens(lm)
    out = lm.model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask,
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        pad_token_id=lm.tokenizer.pad_token_id,
        eos_token_id=ends,
        **({"logits_processor": _draw(prompts, settings)} if settings.temperature else {}),
    )
    return [_until_end(row, ends) for row in out[:, width:].tolist()]


def _draw(prompts: Encoded, settings: GenerationSettings) -> list[Any]:
    # What makes the largest score a draw: temperature, top-k and top-p as usual, then each row's own noise.
    rows = [row[mask.bool()].tolist() for row, mask in zip(prompts.ids, prompts.mask, strict=True)]
    lucks = [luck(settings.seed, row, prompts.ids.device) for row in rows]

    def with_noise(_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.stack([noisy(row, g) for row, g in zip(scores, lucks, strict=True)])

    return [*warpers(settings.temperature, settings.top_p), with_noise]


def luck(seed: int, prompt: list[int], device: torch.device) -> torch.Generator:
    """The source of one row's noise: the seed's and the prompt's own."""
    digest = hashlib.sha256(repr((seed, prompt)).encode()).digest()[:7]
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def warpers(temperature: float, top_p: float, top_k: int = TOP_K) -> list[Any]:
    """Temperature, top-k and top-p, in this order, as transformers has them: functions of ids and scores."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    at_most = [TopKLogitsWarper(top_k)] if top_k else []
    return [TemperatureLogitsWarper(temperature), *at_most, *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]


def noisy(scores: Float[Tensor, " vocab"], generator: torch.Generator) -> Float[Tensor, " vocab"]:
    """Scores of which the largest is a draw.

    With `E` exponential, the largest of `log p − log E` falls on a token with its probability (Gumbel, 1954).
    """
    return scores - torch.empty_like(scores).exponential_(generator=generator).log()


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1]


def text_of(lm: LanguageModel, tokens: list[int]) -> str:
    """A reply's text, without the tokens that are not text."""
    return lm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
