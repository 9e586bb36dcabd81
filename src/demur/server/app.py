"""The app: routes, keys and errors put together."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI

from demur import __version__
from demur.server.answers import Listener
from demur.server.impact import LOCAL_CARD, ImpactCard
from demur.server.keys import Keys
from demur.server.problems import tell_problems
from demur.server.settings import ServerSettings


@dataclass(frozen=True)
class Serving:
    """What the routes work with; they find it as `request.app.state.serving`."""

    settings: ServerSettings
    keys: Keys | None = None
    card: ImpactCard = LOCAL_CARD
    listeners: tuple[Listener, ...] = ()
    """Hear of every finished answer; what keeps answers for appeals is one."""


def create_app(serving: Serving, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The app with the API's own routes and those given (feedback and appeals, the page)."""
    app = FastAPI(
        title="demur",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        summary="An OpenAI-compatible API over a steered model.",
    )
    app.state.serving, app.state.keys = serving, serving.keys
    tell_problems(app)
    for router in routers:
        app.include_router(router)
    return app
