"""How much anybody may ask: size of a request, requests a minute, and from where."""

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demur.server.keys import Caller, Role, require
from demur.server.problems import ApiError
from demur.server.settings import LOOPBACK


class Rates:
    """Requests a minute for each caller: a bucket that fills evenly."""

    def __init__(self, a_minute: int) -> None:
        self.a_minute = a_minute
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Counts a request.

        Raises:
            ApiError: 429, with the time after which there is room again.
        """
        if not self.a_minute:
            return
        now = time.monotonic()
        left, then = self._left.get(name, (float(self.a_minute), now))
        left = min(self.a_minute, left + (now - then) * self.a_minute / 60)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / self.a_minute)
            raise ApiError(
                429,
                f"the key {name} may ask {self.a_minute} times a minute; come back in {wait} s.",
                "rate_limit_exceeded",
                headers={"Retry-After": str(wait)},
            )
        self._left[name] = left - 1, now


def metered(role: Role) -> Callable[..., Awaitable[Caller]]:
    """As `keys.require`, and counted against the caller's rate."""

    async def caller(request: Request, found: Annotated[Caller, Depends(require(role))]) -> Caller:
        request.app.state.rates.take(found.name)
        return found

    return caller


class SizeLimit:
    """Refuses a body of more than so many bytes, before it is read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        problem = ApiError(413, f"the request is larger than {self.most} bytes; shorten it.", "request_too_large")
        if stated.isdigit() and int(stated) > self.most:
            await problem.response(scope, receive, send)
            return
        seen, begun = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise problem
            return message

        async def noted(message: Message) -> None:
            # Whoever reads the body has an answer of their own to its breaking off; ours takes its place.
            nonlocal begun
            if begun or seen <= self.most:
                begun = True
                await send(message)

        with suppress(ApiError):
            await self.app(scope, counted, noted)
        if seen > self.most and not begun:
            await problem.response(scope, receive, send)


class LocalOnly:
    """Without keys, takes what comes from this machine alone: a page elsewhere cannot lead a browser here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one web socket."""
        if scope["type"] in ("http", "websocket"):
            headers = {k: v.decode("latin-1") for k, v in scope["headers"]}
            names = [_name(f"//{headers.get(b'host', '')}"), _name(headers.get(b"origin", f"//{LOOPBACK[0]}"))]
            if not set(names) <= set(LOOPBACK):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                problem = ApiError(403, f"this server answers to {', '.join(LOOPBACK)} alone.", "wrong_host")
                await problem.response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
