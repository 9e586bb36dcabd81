"""From a request to choices to be written: its policy, its prompts as tokens, how each is drawn."""

import secrets
from collections.abc import Sequence

from fastapi import Request
from jinja2 import TemplateError

from demur.errors import DemurError, PromptError
from demur.models.chat import bare_roles, label, render, tokens_and_roles
from demur.models.generation import TOP_K
from demur.models.load import LanguageModel
from demur.records import Message
from demur.server.batch import Coded
from demur.server.dialect import Asking
from demur.server.offer import NotOfferedError, Picked
from demur.server.orders import Order
from demur.server.problems import ApiError
from demur.server.sampling import Sampling
from demur.server.serving import Serving

SHORT = 8
"""Characters a token, above which a prompt's tokens are counted before anything else is done with it."""


def picked_for(serving: Serving, asked: Asking) -> Picked:
    """The policy that a request is for.

    Raises:
        ApiError: 404 where there is none of that name, 400 where it has no such level or kind of harm.
    """
    wish = asked.demur
    try:
        return serving.offer.pick(asked.model, wish.policy, wish.level, wish.kinds)
    except NotOfferedError as error:
        raise ApiError(404, str(error), "model_not_found", "model") from error
    except DemurError as error:
        raise ApiError(400, str(error), "invalid_value", "demur") from error


def check_choices(serving: Serving, asked: Asking, prompts: int) -> None:
    """Before anything is done with its prompts.

    Raises:
        ApiError: 400 where a request has no prompt, or more choices than there may be.
    """
    most = serving.settings.max_choices
    if not 1 <= prompts * (asked.n or 1) <= most:
        raise ApiError(
            400,
            f"a request may have 1 to {most} choices (n times prompts).",
            "invalid_value",
            "n" if prompts else "prompt",
        )


async def chat_tokens(serving: Serving, picked: Picked, messages: Sequence[Message]) -> Coded:
    """A conversation as tokens, ready for its reply.

    Raises:
        ApiError: 400 where it does not fit the context or the model's template.
    """
    lm = serving.lm

    def work() -> Coded:
        talk = picked.policy.conversation(messages)
        if len(talk) >= lm.context or sum(len(m.content) for m in talk) > SHORT * lm.context:
            _check_length(lm, len(lm.tokenizer(render(lm, talk), add_special_tokens=False)["input_ids"]))
        return tokens_and_roles(lm, talk)

    try:
        ids, roles = await serving.aside(work)
    except PromptError as error:
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from error
    except TemplateError as error:
        told = f"the model's template does not take this conversation: {error}."
        raise ApiError(400, told, "invalid_value", "messages") from error
    if not ids:
        raise ApiError(400, "there is nothing to answer; give some text.", "invalid_value", "messages")
    return ids, roles


async def text_tokens(serving: Serving, prompts: Sequence[str | list[int]]) -> list[Coded]:
    """Bare prompts as tokens: all of it the user's words.

    Raises:
        ApiError: 400 where one is empty, does not fit the context, or has a token that is none.
    """
    lm = serving.lm
    vocab = lm.model.get_input_embeddings().weight.shape[0]

    def work(prompt: str | list[int]) -> Coded:
        if isinstance(prompt, str):
            if len(prompt) > SHORT * lm.context:
                _check_length(lm, len(lm.tokenizer(prompt)["input_ids"]))
            ids, roles = label(lm, prompt, None, special_tokens=True)
        else:
            if any(not 0 <= t < vocab for t in prompt):
                raise ApiError(400, f"a token lies outside of 0 to {vocab - 1}.", "invalid_value", "prompt")
            ids, roles = prompt, bare_roles(lm, prompt)
        if not ids:
            raise ApiError(400, "a prompt is empty; give at least one token.", "invalid_value", "prompt")
        _check_length(lm, len(ids))
        return ids, roles

    return [await serving.aside(lambda p=p: work(p)) for p in prompts]


def sampling_for(
    serving: Serving, asked: Asking, prompts: Sequence[Coded], most: int | None, logprobs: int | None
) -> Sampling:
    """How the choices are drawn.

    Raises:
        ApiError: 400 where more tokens or choices are asked for than there may be.
    """
    settings, lm = serving.settings, serving.lm
    room = lm.context - max(len(ids) for ids, _ in prompts)
    if most is not None and most > settings.max_new_tokens:
        raise ApiError(
            400,
            f"{most} tokens are asked for; here it may be {settings.max_new_tokens} at most.",
            "invalid_value",
            "max_tokens",
        )
    if most is not None and most > room:
        raise ApiError(
            400,
            f"{most} tokens do not fit behind the prompt in a context of {lm.context}; there is room for {room}.",
            "context_length_exceeded",
            "max_tokens",
        )
    if len(asked.stops) > 4 or any(len(s) > 256 for s in asked.stops):
        raise ApiError(400, "there may be four stop texts, of 256 characters each.", "invalid_value", "stop")
    vocab = lm.model.get_input_embeddings().weight.shape[0]
    if asked.logit_bias and (len(asked.logit_bias) > 1024 or any(not 0 <= t < vocab for t in asked.logit_bias)):
        raise ApiError(400, f"logit_bias takes up to 1024 tokens from 0 to {vocab - 1}.", "invalid_value", "logit_bias")
    return Sampling(
        max_new_tokens=most if most is not None else min(settings.usual_tokens, settings.max_new_tokens, room),
        temperature=asked.temperature or 0.0,
        top_p=asked.top_p if asked.top_p is not None else 1.0,
        top_k=asked.top_k if asked.top_k is not None else TOP_K,
        seed=asked.seed if asked.seed is not None else secrets.randbits(48),
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=asked.logit_bias or {},
        stop=asked.stops,
        logprobs=logprobs,
        ignore_eos=asked.ignore_eos,
    )


def ordered(
    serving: Serving, request: Request, asked: Asking, picked: Picked, prompts: Sequence[Coded], how: Sampling, *,
    strip: bool, echo: bool = False,
) -> Order:  # fmt: skip
    """The order, queued, and given up when the client leaves."""
    made = Order(
        serving.engine,
        serving.metrics,
        picked,
        prompts,
        how,
        asked.n or 1,
        seconds=serving.settings.timeout,
        stream=bool(asked.stream),
        strip=strip,
        echo=echo,
        stop_late=serving.settings.on_late == "stop",
    )
    made.watch(request)
    return made


def _check_length(lm: LanguageModel, tokens: int) -> None:
    if tokens >= lm.context:
        raise ApiError(
            400,
            f"a prompt of {tokens} tokens does not fit {lm.name}'s context of {lm.context}; shorten it.",
            "context_length_exceeded",
        )
