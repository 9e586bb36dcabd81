"""The next token of a row: greedy or drawn, as the request says, whatever is beside it in the batch."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from demur.config import Settings
from demur.models.generation import TOP_K, luck, noisy, warpers
from demur.records.record import Record


class Sampling(Settings):
    """How one choice is written."""

    max_new_tokens: int = Field(ge=0)
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=TOP_K, ge=0)
    """Most likely tokens that are sampled from; 0: all."""
    seed: int = 0
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the reply has."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time that the reply has it."""
    logit_bias: dict[int, float] = {}
    """Added to logits, by token."""
    stop: tuple[str, ...] = ()
    """Texts before which the reply ends."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each place; None tells nothing."""
    ignore_eos: bool = False
    """Go on to the full length."""

    @property
    def is_plain(self) -> bool:
        """Whether the next token is the likeliest one, as the model has it."""
        return not (self.temperature or self.presence_penalty or self.frequency_penalty or self.logit_bias)


class TokenScore(Record):
    """A token, what the model said of it (nats), and of the likeliest ones in its place."""

    token: int
    logprob: float | None
    """None of a prompt's first token, before which there is nothing."""
    top: tuple[tuple[int, float], ...] = ()


class Drawing:
    """Draws one row's tokens. The luck is the seed's and the prompt's own."""

    def __init__(self, how: Sampling, prompt: list[int], device: torch.device) -> None:
        self.how, self.counts = how, {}
        self.warpers: list[Any] = []
        if how.temperature:
            self.warpers = warpers(how.temperature, how.top_p, how.top_k)
            self.luck = luck(how.seed, prompt, device)

    def __call__(self, logits: Float[Tensor, " vocab"]) -> int:
        """The next token, which is taken to be the reply's."""
        scores, how = logits.float(), self.how
        if not how.is_plain:
            scores = scores.clone()
            for token, bias in how.logit_bias.items():
                scores[token] += bias
            for token, times in self.counts.items():
                scores[token] -= how.presence_penalty + how.frequency_penalty * times
            for warp in self.warpers:
                scores = warp(None, scores[None])[0]
            if how.temperature:
                scores = noisy(scores, self.luck)
        token = int(scores.argmax())
        self.counts[token] = self.counts.get(token, 0) + 1
        return token


def scored(logits: Float[Tensor, "places vocab"], tokens: list[int], top: int) -> list[TokenScore]:
    """What the model said of tokens, and the `top` likeliest in each one's place."""
    found = []
    for start in range(0, len(tokens), 64):  # a few rows of the vocabulary at a time
        row = tokens[start : start + 64]
        scores = logits[start : start + 64].float().log_softmax(-1)
        said = scores.gather(1, torch.tensor(row, device=scores.device)[:, None])[:, 0].tolist()
        best = scores.topk(top) if top else None
        for i, token in enumerate(row):
            pairs = zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True) if best else ()
            found.append(TokenScore(token=token, logprob=said[i], top=tuple(pairs)))
    return found
