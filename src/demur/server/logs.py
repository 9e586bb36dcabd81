"""The log: one JSON object a line, on stderr, one line a request; no prompt and no reply in it unless asked for."""

import json
import logging
import sys
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("demur.server")


class AsJson(logging.Formatter):
    """A record as one JSON object; what was given as `extra={"facts": …}` stands beside time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts: dict[str, Any] = getattr(record, "facts", {}) | {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False, default=str)


def set_up() -> None:
    """Sends our own and uvicorn's log to stderr, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AsJson())
    for name in ("demur.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class RequestLog:
    """A line for each request, and its counts; routes add facts in `request.state.facts`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        metrics = scope["app"].state.serving.metrics  # now: an app mounted in ours takes its place

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - began
            # The route's pattern, not the path: what a client writes there is not to become a label.
            route = getattr(scope.get("route"), "path", "none")
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            if caller := scope["state"].get("caller"):
                facts["caller"] = caller.name
            said = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4), **facts}
            log.info("request", extra={"facts": said})
