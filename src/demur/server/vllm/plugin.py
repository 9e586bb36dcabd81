"""The plug-in: vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`).

Without `DEMUR_POLICIES` vLLM is left as it is, but a request that names a policy is refused. What is changed is vLLM
0.32's own classes: nine methods, each wrapped and none replaced (and two of its model runner, in `watching.py`).
"""

import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from demur.errors import DemurError
from demur.server.vllm.options import Options

log = logging.getLogger("demur.server")
CONVERSATION = "demur_conversation"
"""Under which a rendered prompt keeps the conversation that it was made of."""
TOLD: dict[str, list[dict]] = {}
"""What became of the requests that were answered last, by the id in the answer, for whoever streams them."""
KEPT = 1024


def register() -> None:
    """Wraps vLLM's classes; a second call does nothing."""
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    if hasattr(InputProcessor, "demur"):
        return
    InputProcessor.demur = None  # type: ignore[attr-defined]
    options = Options.told()
    if options is None:
        _wrap(InputProcessor, "process_inputs", _refusing)
        return
    from vllm.renderers.base import BaseRenderer  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu_worker import Worker  # pyright: ignore[reportMissingImports]

    _wrap(InputProcessor, "__init__", functools.partial(_knowing, options))
    _wrap(InputProcessor, "process_inputs", _ordering)
    _wrap(BaseRenderer, "render_chat", _remembering)
    _wrap(BaseRenderer, "render_chat_async", _remembering_async)
    _wrap(OutputProcessor, "add_request", _awaiting)
    _wrap(RequestState, "make_request_output", _taking)
    _wrap(AsyncLLM, "generate", _telling)
    _wrap(LLMEngine, "step", _telling_all)
    _wrap(Worker, "load_model", functools.partial(_watching, options))
    Worker.demur_report = _report  # type: ignore[attr-defined]


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


def _refusing(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    request = original(self, *args, **kwargs)
    if "demur" in ((request.sampling_params and request.sampling_params.extra_args) or {}):
        raise _refusal("no policies are on offer here; start vLLM with DEMUR_POLICIES=gated, say")
    return request


# The process that takes requests.


def _knowing(options: Options, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    from demur.server.vllm.asking import Asking

    original(self, *args, **kwargs)
    self.demur = Asking(options, self.vllm_config, self.tokenizer)


def _remembering(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    conversations, prompts = original(self, *args, **kwargs)
    for conversation, prompt in zip(conversations, prompts, strict=True):
        prompt[CONVERSATION] = conversation
    return conversations, prompts


async def _remembering_async(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    conversations, prompts = await original(self, *args, **kwargs)
    for conversation, prompt in zip(conversations, prompts, strict=True):
        prompt[CONVERSATION] = conversation
    return conversations, prompts


def _ordering(
    original: Callable[..., Any], self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if request.sampling_params is None:
        return request
    if request.prompt_token_ids is None or request.prompt_embeds is not None or request.resumable:
        raise _refusal(
            "a prompt of embeddings, or one that is streamed in, cannot be read by a gate; send text or tokens"
        )
    ids, said = request.prompt_token_ids, prompt.get(CONVERSATION) if isinstance(prompt, dict) else None
    try:
        text = prompt.get("prompt") if said is not None else None
        roles = self.demur.roles(said, text, ids) if text else None
        request.cache_salt = self.demur.order(request.sampling_params, ids, roles) or request.cache_salt
    except DemurError as error:
        raise _refusal(str(error)) from error
    return request


def _refusal(why: str) -> Exception:
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    return VLLMValidationError(why, parameter="demur")


# The answer of a request, and what the engine's session says of it.


class Awaited:
    """A request in the engine, and what its choices have come to so far."""

    def __init__(self, wish: dict[str, Any], request: str, choices: int) -> None:
        self.wish = wish
        self.requests = [request] if choices == 1 else [f"{i}_{request}" for i in range(choices)]
        self.texts, self.tokens, self.finish = [""] * choices, [0] * choices, [""] * choices

    def take(self, output: Any, is_new: bool) -> None:
        """What has come: the whole reply again, or what is new of it."""
        for part in output.outputs:
            i = part.index
            self.texts[i] = self.texts[i] * is_new + part.text
            self.tokens[i] = self.tokens[i] * is_new + len(part.token_ids)
            self.finish[i] = part.finish_reason or ""

    @property
    def question(self) -> tuple[list[str], list[int]]:
        """What a worker's `demur_report` is asked."""
        return self.requests, self.tokens

    def tell(self, asking: Any, output: Any, seen: list[dict | None]) -> list[dict]:
        """Puts the account of each choice into the output, where vLLM's server passes it on."""
        accounts = asking.accounts(self.wish, list(zip(self.texts, self.tokens, self.finish, strict=True)), seen)
        if self.wish["explain"] and accounts:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), "demur": accounts}
        return accounts


def _awaiting(
    original: Callable[..., Any], self: Any, request: Any, prompt: Any, parent_req: Any, *args: Any, **kwargs: Any
) -> Any:
    original(self, request, prompt, parent_req, *args, **kwargs)
    wish = ((request.sampling_params and request.sampling_params.extra_args) or {}).get("demur")
    if wish is None:
        return
    owner = parent_req if parent_req is not None else request
    awaited = getattr(owner, "demur_awaited", None) if parent_req is not None else None
    if awaited is None:
        awaited = Awaited(wish, owner.request_id, parent_req.n if parent_req is not None else 1)
    if parent_req is not None:
        parent_req.demur_awaited = awaited
    self.request_states[request.request_id].demur = awaited


def _taking(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    awaited = getattr(self, "demur", None)
    if output is not None and awaited is not None:
        awaited.take(output, is_new=self.output_kind.name == "DELTA")
        output.demur = awaited
    return output


async def _telling(
    original: Callable[..., Any], self: Any, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
) -> AsyncIterator[Any]:
    async with aclosing(original(self, prompt, sampling_params, request_id, **kwargs)) as outputs:
        async for output in outputs:
            awaited = getattr(output, "demur", None)
            if output.finished and awaited is not None:
                seen = [[]]
                if awaited.wish["steered"]:
                    seen = await self.collective_rpc("demur_report", args=awaited.question)
                accounts = awaited.tell(self.input_processor.demur, output, seen[0])
                if awaited.wish["explain"] and accounts:
                    TOLD[request_id] = accounts
                while len(TOLD) > KEPT:
                    del TOLD[next(iter(TOLD))]
            yield output


def _telling_all(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    outputs = original(self, *args, **kwargs)
    for output in outputs:
        awaited = getattr(output, "demur", None)
        if output.finished and awaited is not None:
            seen = self.collective_rpc("demur_report", args=awaited.question) if awaited.wish["steered"] else [[]]
            awaited.tell(self.input_processor.demur, output, seen[0])
    return outputs


# The processes that run the model.


def _watching(options: Options, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    from demur.server.vllm.watching import watch

    original(self, *args, **kwargs)
    self.demur = watch(self.model_runner, options)


def _report(self: Any, requests: list[str], tokens: list[int]) -> list[dict | None]:
    return self.demur.report(requests, tokens)
