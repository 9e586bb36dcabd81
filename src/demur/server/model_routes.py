"""`GET /v1/models`, `/healthz` and `/metrics`."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from demur.server.dialect import Model, Models
from demur.server.keys import Caller, require
from demur.server.offer import NotOfferedError
from demur.server.orders import stopped
from demur.server.problems import RESPONSES, ApiError
from demur.server.serving import Serving

routes = APIRouter(responses=RESPONSES)
STARTED = int(time.time())


@routes.get("/v1/models", tags=["OpenAI"])
async def models(request: Request, _caller: Annotated[Caller, Depends(require("user"))]) -> Models:
    """Every policy and level as a model id."""
    serving: Serving = request.app.state.serving
    return Models(data=[_model(serving, id_) for id_ in serving.offer.ids()])


@routes.get("/v1/models/{id_:path}", tags=["OpenAI"])
async def model(id_: str, request: Request, _caller: Annotated[Caller, Depends(require("user"))]) -> Model:
    """One model id."""
    try:
        return _model(request.app.state.serving, id_)
    except NotOfferedError as error:
        raise ApiError(404, str(error), "model_not_found", "model") from error


@routes.get("/healthz")
async def health(request: Request) -> dict[str, Any]:
    """Whether the engine works; 503 where it does not."""
    serving: Serving = request.app.state.serving
    if not serving.engine.is_alive:
        raise stopped()
    return {"status": "ok", "rows": len(serving.engine.rows), "waiting": len(serving.engine.waiting)}


@routes.get("/metrics", response_class=Response)
async def metrics(request: Request, _caller: Annotated[Caller, Depends(require("operator"))]) -> Response:
    """For Prometheus."""
    return Response(request.app.state.serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _model(serving: Serving, id_: str) -> Model:
    picked = serving.offer.pick(id_)
    about = {"policy": picked.name, "policy_hash": picked.hash, "level": picked.level}
    return Model(id=picked.model, created=STARTED, demur=about)
