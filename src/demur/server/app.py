"""The app: routes, keys, limits, log and errors put together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from demur import __version__
from demur.server import chat_routes, model_routes, text_routes
from demur.server.limits import LocalOnly, Rates, SizeLimit
from demur.server.logs import RequestLog
from demur.server.problems import tell_problems
from demur.server.serving import Serving

log = logging.getLogger("demur.server")
WATCH = 1.0
"""Seconds between two looks at the policy files."""


def create_app(serving: Serving, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The app with the API's own routes and those given (feedback and appeals, the page).

    The engine starts and stops with it.
    """
    app = FastAPI(
        title="demur",
        version=__version__,
        summary="An OpenAI-compatible API over a steered model.",
        lifespan=_working,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.serving, app.state.keys, app.state.rates = serving, serving.keys, Rates(serving.settings.rate)
    tell_problems(app)
    for router in (chat_routes.routes, text_routes.routes, model_routes.routes, *routers):
        app.include_router(router)
    # The last one added is the first to see a request.
    app.add_middleware(SizeLimit, most=serving.settings.max_body)
    if serving.keys is None:
        app.add_middleware(LocalOnly)
    app.add_middleware(RequestLog)
    return app


@asynccontextmanager
async def _working(app: FastAPI) -> AsyncIterator[None]:
    serving: Serving = app.state.serving
    serving.engine.start()
    watching = asyncio.create_task(_watch(serving))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.to_thread(serving.engine.stop)
        serving.tokenizing.shutdown(wait=False)


async def _watch(serving: Serving) -> None:
    while True:
        await asyncio.sleep(WATCH)
        try:
            await asyncio.to_thread(serving.offer.refresh)
        except Exception:  # nobody waits for this task; it goes on
            log.exception("looking at the policy files failed")
