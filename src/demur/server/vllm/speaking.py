"""Before vLLM's server: model ids and `demur` in requests, `demur` in answers, and who may ask.

vLLM's own fields carry both: what a request wants of the policy goes in as `vllm_xargs`, the account comes out as
`kv_transfer_params`. For `vllm serve --middleware demur.server.vllm.speaking.Speaking`, as `demur serve` starts it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demur.errors import DemurError
from demur.server.keys import Keys, admitted
from demur.server.limits import LocalOnly, SizeLimit
from demur.server.offer import NotOfferedError
from demur.server.problems import ApiError
from demur.server.settings import ServerSettings
from demur.server.vllm.asking import Asking, wished
from demur.server.vllm.plugin import TOLD

ASKED = ("/v1/chat/completions", "/v1/completions")
OPEN = ("/health", "/ping", "/version")
"""Paths that take no key."""


class Speaking:
    """`DEMUR_KEYS` is the keys file, if there is one, `DEMUR_MAX_BODY` the largest request in bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        keys = os.environ.get("DEMUR_KEYS")
        self.keys = Keys.load(Path(keys)) if keys else None
        most = int(os.environ.get("DEMUR_MAX_BODY", ServerSettings().max_body))
        self.outer: ASGIApp = SizeLimit(self._checked if self.keys else LocalOnly(self._checked), most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await (self.outer if scope["type"] == "http" else self.app)(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/healthz":
            scope = {**scope, "path": "/health", "raw_path": b"/health"}
        try:
            self._admit(scope)
            if scope["method"] == "POST" and scope["path"] in ASKED:
                scope, receive, send = await self._translated(scope, receive, send)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        # vLLM has routes that reset and reconfigure it: beyond the API they are the operator's.
        if scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ").strip()
        admitted(self.keys, given, "user" if scope["path"].startswith("/v1/") else "operator")

    async def _translated(self, scope: Scope, receive: Receive, send: Send) -> tuple[Scope, Receive, Send]:
        given = b""
        while True:
            message = await receive()
            given += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        asking: Asking = scope["app"].state.engine_client.input_processor.demur
        asked = translated(asking, given)
        # An id of a client's own could be that of another's request.
        headers = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"x-request-id")]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(asked)).encode())]}
        unread: list[Message] = [{"type": "http.request", "body": asked, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        return scope, again, Lifting(send)


def translated(asking: Asking, given: bytes) -> bytes:
    """A request's body as vLLM takes it; what is no JSON object is left for vLLM to refuse.

    Raises:
        ApiError: it names what is not on offer, or what steering does not support.
    """
    try:
        body = json.loads(given)
    except ValueError:
        return given
    if not isinstance(body, dict):
        return given
    if body.get("use_beam_search"):
        raise ApiError(400, "beam search cannot be steered; leave `use_beam_search` out.", param="use_beam_search")
    try:
        wish = wished(body.pop("demur", None))
        told = asking.menu.told(str(body.get("model") or asking.lm.name), wish)
    except NotOfferedError as error:
        raise ApiError(404, str(error), "model_not_found", "model") from error
    except DemurError as error:
        raise ApiError(400, str(error), "invalid_value", "demur") from error
    more = body.get("vllm_xargs")
    body["vllm_xargs"] = {**(more if isinstance(more, dict) else {}), "demur": json.dumps(told)}
    body.pop("request_id", None)
    return json.dumps(body).encode()


class Lifting:
    """Sends an answer on, with the account where demur's own server has it."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: Message | None = None
        """Kept back until the length of the answer is known."""
        self.streams = False
        self.rest = b""

    async def __call__(self, message: Message) -> None:
        """One of vLLM's messages."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            if self.streams:
                await self.send(message)
            else:
                self.start = message
            return
        self.rest += message.get("body", b"")
        more = bool(message.get("more_body"))
        if self.streams:
            *events, self.rest = self.rest.split(b"\n\n")
            done = b"".join(lifted_event(event) + b"\n\n" for event in events) + (b"" if more else self.rest)
            if done or not more:
                await self.send({"type": "http.response.body", "body": done, "more_body": more})
        elif not more and self.start is not None:
            body = lifted(self.rest)
            headers = [(k, v) for k, v in self.start["headers"] if k != b"content-length"]
            await self.send({**self.start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await self.send({"type": "http.response.body", "body": body, "more_body": False})


def lifted(answer: bytes) -> bytes:
    """An answer with `demur` of its own, and of each choice where there are several."""
    try:
        body = json.loads(answer)
    except ValueError:
        return answer
    carried = body.get("kv_transfer_params") if isinstance(body, dict) else None
    if not isinstance(carried, dict) or "demur" not in carried:
        return answer
    accounts = carried.pop("demur")
    body["kv_transfer_params"] = carried or None
    body["demur"] = accounts[0]
    if len(accounts) > 1:
        for choice in body["choices"]:
            choice["demur"] = accounts[choice["index"] % len(accounts)]
    return json.dumps(body, ensure_ascii=False).encode()


def lifted_event(event: bytes) -> bytes:
    """A streamed event; that which ends the last choice has its account."""
    if not event.startswith(b"data: {"):
        return event
    chunk: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    ended = [c["index"] for c in chunk.get("choices", ()) if c.get("finish_reason")]
    if not ended or (account := _account(chunk.get("id", ""), ended[0])) is None:
        return event
    return b"data: " + json.dumps(chunk | {"demur": account}, ensure_ascii=False).encode()


def _account(answer: str, choice: int) -> Mapping[str, Any] | None:
    # vLLM numbers the prompts of one request after a dash or an underscore.
    accounts = TOLD.pop(answer, None) or TOLD.pop(f"{answer}-0", None)
    return None if accounts is None else accounts[choice % len(accounts)]
