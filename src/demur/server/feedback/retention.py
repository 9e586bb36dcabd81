"""What becomes of text: it is deleted when its time is up, or when its owner says so; counts stay.

The clock of an answer's text starts when it is given, and once more when it is appealed against. An appeal that nobody
decided in that time lapses, and is counted as lapsed. What upheld appeals are worth for the next policy is in the file
that `demur feedback export` wrote before.
"""

import logging
import time
from typing import Any

from sqlalchemy import ColumnElement, or_, select, update

from demur.server.feedback.store import Store
from demur.server.feedback.tables import answers, appeals, feedback

DAY = 86400.0

log = logging.getLogger(__name__)


def expire(store: Store, days: float, now: float | None = None) -> int:
    """Deletes text older than `days`; gives the number of answers and comments that had some.

    Raises:
        StoreError: nothing was deleted, or what was deleted still stands in the log.
    """
    limit = (time.time() if now is None else now) - days * DAY
    return _delete(store, answers.c.since <= limit, feedback.c.created <= limit)


def forget(store: Store, owner: str) -> int:
    """Deletes a user's text and their name beside it; gives the number of answers and comments.

    Raises:
        StoreError: nothing was deleted, or what was deleted still stands in the log.
    """
    return _delete(store, answers.c.owner == owner, feedback.c.owner == owner)


def _delete(store: Store, of_answers: ColumnElement[bool], of_feedback: ColumnElement[bool]) -> int:
    nobody: dict[str, Any] = {"owner": ""}
    had_text = or_(answers.c.messages.is_not(None), answers.c.owner != "")
    with store.database.writing() as connection:
        mine = select(answers.c.id).where(of_answers, had_text)
        connection.execute(
            update(appeals).where(appeals.c.answer.in_(mine), appeals.c.state == "open").values(state="lapsed")
        )
        connection.execute(update(appeals).where(appeals.c.answer.in_(mine)).values(argument=None, note=None, **nobody))
        gone = connection.execute(
            update(answers).where(of_answers, had_text).values(messages=None, reply=None, **nobody)
        ).rowcount
        gone += connection.execute(
            update(feedback).where(of_feedback, feedback.c.owner != "").values(comment=None, **nobody)
        ).rowcount
    # Also where nothing is left to delete: the last time somebody may have been reading the log.
    if not store.database.wipe():
        log.warning("retention: the log of the store is being read; what was deleted leaves it at the next deletion")
    return gone
