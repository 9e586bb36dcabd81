"""The store of answers and appeals: what is written here and was acknowledged is never lost."""

import secrets
import time
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Row, insert, select, tuple_, update

from demur.errors import AppealError, DecidedError
from demur.records import Message
from demur.server.feedback.database import Database
from demur.server.feedback.records import Answer, Appeal, Case, Decision, Feedback, Rating, State
from demur.server.feedback.tables import answers, appeals, feedback

MOST = 500
"""Most cases in one reading of the queue."""


class Store:
    """Refused answers, appeals against them, feedback; see `retention` for what is deleted when."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, where: str | Path) -> Self:
        """The store in a file, or at a `postgresql://` URL; made if it is not there.

        Raises:
            StoreError: it cannot be opened.
        """
        return cls(Database.open(where))

    def close(self) -> None:
        """Lets go of it."""
        self.database.close()

    def keep(self, answer: Answer) -> None:
        """Keeps a refused answer, so that it can be appealed against.

        Raises:
            StoreError: nothing was kept.
        """
        row = answer.model_dump(mode="json") | {"since": answer.created, "owner": _clean(answer.owner)}
        row["reply"] = _clean(answer.reply)
        row["messages"] = [{"role": m.role, "content": _clean(m.content)} for m in answer.messages or ()]
        with self.database.writing() as connection:
            connection.execute(insert(answers), row)

    def appeal(self, owner: str, answer: str, argument: str) -> Appeal:
        """Files an appeal against one's own answer; the one that is there, if it was appealed against before.

        Raises:
            AppealError: no such answer, or another user's, or its text is deleted.
            StoreError: nothing was filed.
        """
        with self.database.writing() as connection:
            # Held until the appeal is there: of two clicks at once the second finds the first's.
            found = select(answers).where(answers.c.id == answer).with_for_update()
            row = connection.execute(found).one_or_none()
            if row is None or row.owner != owner:
                raise AppealError(
                    f"no refused answer {answer!r} of yours is kept; give the id of one that was refused."
                )
            before = connection.execute(select(appeals).where(appeals.c.answer == answer)).one_or_none()
            if before is not None:
                return _appeal(before)
            if row.messages is None:
                raise AppealError(f"the text of answer {answer!r} is deleted, so nobody could judge it; ask again.")
            made = Appeal(
                id=f"appeal-{secrets.token_hex(12)}",
                answer=answer,
                owner=owner,
                created=time.time(),
                argument=_clean(argument),
            )
            connection.execute(insert(appeals), made.model_dump())
            connection.execute(update(answers).where(answers.c.id == answer).values(since=made.created))
            return made

    def case(self, appeal: str, owner: str | None = None) -> Case:
        """An appeal with its answer; with `owner`, only that user's.

        Raises:
            AppealError: no such appeal, or not this user's.
        """
        query = _cases().where(appeals.c.id == appeal)
        with self.database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or (owner is not None and row.owner_1 != owner):
            raise AppealError(
                f"no appeal {appeal!r}; `GET /v1/appeals` and `demur feedback list` name those there are."
            )
        return _case(row)

    def cases(self, state: State | None = None, limit: int = 50, after: str | None = None) -> tuple[list[Case], bool]:
        """The queue, oldest first, from behind the appeal `after`; and whether there are more.

        Raises:
            AppealError: no appeal `after`.
        """
        limit = min(limit, MOST)
        query = _cases().order_by(appeals.c.created, appeals.c.id).limit(limit + 1)
        if state is not None:
            query = query.where(appeals.c.state == state)
        if after is not None:
            last = self.case(after).appeal
            query = query.where(tuple_(appeals.c.created, appeals.c.id) > tuple_(last.created, last.id))
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return [_case(row) for row in rows[:limit]], len(rows) > limit

    def decide(self, appeal: str, decision: Decision, note: str, reviewer: str) -> Case:
        """Decides an open appeal.

        Raises:
            AppealError: no such appeal.
            DecidedError: it is not open any more.
        """
        values = {"state": decision, "note": _clean(note), "reviewer": _clean(reviewer), "decided": time.time()}
        with self.database.writing() as connection:
            # Only where it is open: of two reviewers at once, one is told that the other was first.
            done = connection.execute(
                update(appeals).where(appeals.c.id == appeal, appeals.c.state == "open").values(values)
            )
        found = self.case(appeal)
        if done.rowcount == 0:
            raise DecidedError(f"appeal {appeal} is {found.appeal.state} already; nothing was changed.")
        return found

    def comment(self, owner: str, answer: str, rating: Rating, comment: str | None = None) -> Feedback:
        """Keeps what somebody thought of an answer.

        Raises:
            StoreError: nothing was kept.
        """
        made = Feedback(
            id=f"feedback-{secrets.token_hex(12)}",
            answer=_clean(answer) or "",
            owner=owner,
            created=time.time(),
            rating=rating,
            comment=_clean(comment),
        )
        with self.database.writing() as connection:
            connection.execute(insert(feedback), made.model_dump())
        return made


def _cases() -> Any:
    # Columns of the same name in both tables: those of appeals get `_1`.
    return select(answers, *(c.label(f"{c.name}_1") for c in appeals.c)).join(appeals, appeals.c.answer == answers.c.id)


def _case(row: Row[Any]) -> Case:
    found = row._mapping
    asked = found["messages"]
    answer: dict[str, Any] = {name: found[name] for name in Answer.model_fields} | {
        "messages": tuple(Message(**m) for m in asked) if asked is not None else None
    }
    return Case(answer=Answer(**answer), appeal=Appeal(**{name: found[f"{name}_1"] for name in Appeal.model_fields}))


def _appeal(row: Row[Any]) -> Appeal:
    return Appeal(**{name: row._mapping[name] for name in Appeal.model_fields})


def _clean(said: str | None) -> str | None:
    # PostgreSQL takes no NUL in text, and nobody takes half a surrogate pair.
    return None if said is None else said.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
