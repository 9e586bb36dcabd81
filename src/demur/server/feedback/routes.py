"""The routes of feedback and appeals, and what keeps refused answers for them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Response
from pydantic import Field, StringConstraints

from demur.errors import AppealError, DecidedError, DemurError, StoreError
from demur.records import Message
from demur.records.record import Record
from demur.server.answers import Answered, Listener
from demur.server.feedback.records import Answer, Case, Decision, Rating, State, Statistics
from demur.server.feedback.retention import expire, forget
from demur.server.feedback.statistics import statistics
from demur.server.feedback.store import MOST, Store
from demur.server.keys import Caller, require
from demur.server.problems import RESPONSES, ApiError, ErrorBody

LONGEST = 4000
"""Characters of an argument, a note or a comment."""
HOUR = 3600.0

log = logging.getLogger("demur.server.feedback")

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]
User = Annotated[Caller, Depends(require("user"))]
Reviewer = Annotated[Caller, Depends(require("reviewer"))]


class FeedbackRequest(Record):
    """What somebody thinks of an answer."""

    answer: Id
    """The answer's id."""
    rating: Rating
    comment: str | None = Field(default=None, max_length=LONGEST)


class AppealRequest(Record):
    """A contest of a refused answer."""

    answer: Id
    """The answer's id."""
    argument: str = Field(min_length=1, max_length=LONGEST)
    """Why it should not have been refused."""


class DecisionRequest(Record):
    """A reviewer's word."""

    decision: Decision
    note: str = Field(default="", max_length=LONGEST)
    """For whoever appealed."""


class Given(Record):
    """Feedback that was kept."""

    object: Literal["feedback"] = "feedback"
    id: str
    answer: str
    rating: Rating


class AppealBody(Record):
    """An appeal, and the answer that it is about."""

    object: Literal["appeal"] = "appeal"
    id: str
    answer: str
    state: State
    created: float
    """Seconds since 1970, as `decided`."""
    decided: float | None = None
    owner: str | None = None
    """Whose it is, and who decided it; for reviewers."""
    reviewer: str | None = None
    argument: str | None = None
    """None once the text is deleted, as `note`, `messages` and `reply`."""
    note: str | None = None
    messages: tuple[Message, ...] | None = None
    reply: str | None = None
    model: str
    policy: str
    policy_hash: str
    gate: float | None = None
    kind: str | None = None

    @classmethod
    def of(cls, case: Case, reader: Caller) -> "AppealBody":
        """A case as its reader may see it."""
        names = {"owner": case.appeal.owner, "reviewer": case.appeal.reviewer} if reader.may("reviewer") else {}
        told = {
            name: getattr(case.appeal, name)
            for name in ("id", "answer", "state", "created", "decided", "argument", "note")
        }
        about = {
            name: getattr(case.answer, name)
            for name in ("messages", "reply", "model", "policy", "policy_hash", "gate", "kind")
        }
        return cls(**told, **about, **names)


class AppealList(Record):
    """A page of the queue, oldest first."""

    object: Literal["list"] = "list"
    data: tuple[AppealBody, ...]
    has_more: bool


class Deleted(Record):
    """How much text was deleted."""

    object: Literal["deleted"] = "deleted"
    answers_and_comments: int


def feedback_router(store: Store, retention_days: float) -> APIRouter:
    """The routes under `/v1/feedback` and `/v1/appeals`; while the app runs, text is deleted when its time is up.

    The app owns the store from here on, and closes it.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_keep_deleting(store, retention_days))
        try:
            yield
        finally:
            task.cancel()
            store.close()

    router = APIRouter(
        prefix="/v1",
        tags=["feedback"],
        lifespan=lifespan,
        responses={s: RESPONSES[s] for s in (400, 401, 403, 503)},
    )
    _feedback_routes(router, store)
    _appeal_routes(router, store)
    return router


def _feedback_routes(router: APIRouter, store: Store) -> None:
    @router.post("/feedback", status_code=201)
    def give_feedback(request: FeedbackRequest, caller: User) -> Given:
        """Say what you think of an answer, refused or not."""
        with told():
            made = store.comment(caller.name, request.answer, request.rating, request.comment)
        return Given(id=made.id, answer=made.answer, rating=made.rating)

    @router.delete("/feedback")
    def delete_text(caller: User, owner: Annotated[str | None, Query(max_length=200)] = None) -> Deleted:
        """Delete all text that is kept of you: requests, replies, appeals, comments. Operators may name another owner."""
        if owner not in (None, caller.name) and not caller.may("operator"):
            raise ApiError(
                403, "only an operator deletes another's text; leave out `owner` for your own.", "wrong_role"
            )
        with told():
            return Deleted(answers_and_comments=forget(store, owner or caller.name))


def _appeal_routes(router: APIRouter, store: Store) -> None:
    missing: dict[int | str, dict[str, Any]] = {404: RESPONSES[404]}

    @router.post("/appeals", status_code=201, responses=missing)
    def file_appeal(request: AppealRequest, caller: User) -> AppealBody:
        """Contest a refused answer of yours; sent twice, it is filed once."""
        with told():
            return AppealBody.of(store.case(store.appeal(caller.name, request.answer, request.argument).id), caller)

    @router.get("/appeals", responses=missing)
    def list_appeals(
        caller: Reviewer,
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
        after: Annotated[Id | None, Query()] = None,
    ) -> AppealList:
        """The queue, oldest first; `after` is the last id of the page before."""
        with told():
            found, more = store.cases(state, limit, after)
        return AppealList(data=tuple(AppealBody.of(case, caller) for case in found), has_more=more)

    @router.get("/appeals/statistics", responses={401: {"model": None, "description": "Never: anybody may ask."}})
    def appeal_statistics(response: Response) -> Statistics:
        """For anybody: refusals, appeals and decisions by kind of harm, without text."""
        response.headers["Cache-Control"] = "max-age=60"
        with told():
            return statistics(store)

    @router.get("/appeals/{appeal}", responses=missing)
    def read_appeal(appeal: Annotated[Id, Path()], caller: User) -> AppealBody:
        """An appeal of yours; reviewers read all."""
        with told():
            return AppealBody.of(store.case(appeal, None if caller.may("reviewer") else caller.name), caller)

    @router.post(
        "/appeals/{appeal}/decision",
        responses=missing | {409: {"model": ErrorBody, "description": "It is decided already."}},
    )
    def decide(appeal: Annotated[Id, Path()], request: DecisionRequest, caller: Reviewer) -> AppealBody:
        """Uphold or reject an open appeal."""
        with told():
            return AppealBody.of(store.decide(appeal, request.decision, request.note, caller.name), caller)


def keeping(store: Store, retention_days: float) -> Listener:
    """What hears of answers and keeps the refused ones, where text may be kept at all."""

    async def keep(answered: Answered) -> None:
        found = refused(answered)
        if found is not None and retention_days > 0:
            await anyio.to_thread.run_sync(store.keep, found)

    return keep


def refused(answered: Answered) -> Answer | None:
    """An answer as it is kept, if its policy acted on it; of several choices, the first on which it did."""
    for reply, account in zip(answered.replies, answered.demur, strict=True):
        if account.get("steered"):
            return Answer(
                id=answered.id,
                owner=answered.caller,
                created=answered.created,
                model=answered.model,
                policy=answered.policy,
                policy_hash=answered.policy_hash,
                level=answered.level,
                gate=account.get("gate"),
                kind=account.get("hazard"),
                messages=answered.messages,
                reply=reply,
            )
    return None


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong in the store, as an answer.

    Raises:
        ApiError: 404, 409 or 503.
    """
    try:
        yield
    except DecidedError as error:
        raise ApiError(409, str(error), "already_decided") from error
    except AppealError as error:
        raise ApiError(404, str(error), "not_found") from error
    except StoreError as error:
        log.error("store: %s", error)
        raise ApiError(503, str(error), "store_unavailable", headers={"Retry-After": "2"}) from error


async def _keep_deleting(store: Store, days: float) -> None:
    while True:
        try:
            gone = await anyio.to_thread.run_sync(expire, store, days)
            log.info("retention: text of %d answers and comments deleted", gone)
        except DemurError as error:
            log.error("retention: %s", error)
        except Exception:
            log.exception("retention: failed, and is tried again")
        await asyncio.sleep(HOUR)
