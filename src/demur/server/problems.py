"""What goes wrong, as HTTP status and the error object that OpenAI's clients read."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from demur.errors import DemurError
from demur.records.record import Record

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
KINDS |= {405: "invalid_request_error", 413: "invalid_request_error", 422: "invalid_request_error"}
KINDS |= {429: "rate_limit_error", 499: "client_closed_request", 503: "overloaded_error", 504: "timeout_error"}


class ErrorObject(Record):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    """The field of the request that it is about."""
    code: str | None = None


class ErrorBody(Record):
    """The body of an answer that is an error."""

    error: ErrorObject


class ApiError(Exception):
    """A request that is not answered, and why; the message is written for whoever sent it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    @property
    def response(self) -> JSONResponse:
        """The answer that tells it."""
        return JSONResponse(body(self.status, str(self), self.code, self.param), self.status, self.headers)


def body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The error object of an answer."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ErrorBody(error=ErrorObject(message=message, type=kind, param=param, code=code)).model_dump()


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "The request cannot be answered as it stands.",
        401: "No key, or one that is not known.",
        403: "The key's role may not do this.",
        404: "There is no such thing.",
        413: "The request is too large.",
        429: "Too many requests; Retry-After says when to come back.",
        503: "The server is shutting down, or its engine has stopped.",
        504: "The answer took too long.",
    }.items()
}
"""For the OpenAPI description: what any route may answer instead."""


def tell_problems(app: FastAPI) -> None:
    """Makes an app answer whatever goes wrong in OpenAI's shape."""

    async def known(_request: Request, problem: Exception) -> JSONResponse:
        assert isinstance(problem, ApiError)
        return problem.response

    async def invalid(_request: Request, problem: Exception) -> JSONResponse:
        assert isinstance(problem, RequestValidationError)
        where, message = _first(problem.errors())
        return JSONResponse(body(400, message, "invalid_value", where), 400)

    async def http(_request: Request, problem: Exception) -> JSONResponse:
        assert isinstance(problem, HTTPException)
        headers = dict(problem.headers or {})
        return JSONResponse(body(problem.status_code, str(problem.detail)), problem.status_code, headers)

    async def ours(_request: Request, problem: Exception) -> JSONResponse:
        return JSONResponse(body(400, str(problem)), 400)

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(DemurError, ours)


def _first(errors: Sequence[Any]) -> tuple[str | None, str]:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return where, f"{where}: {message}" if where else message
