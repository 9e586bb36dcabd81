"""What anybody may know of refusals and appeals: counts by kind of harm, without text or names."""

from sqlalchemy import func, select

from demur.server.feedback.records import Statistics, Tally
from demur.server.feedback.store import Store
from demur.server.feedback.tables import answers, appeals, feedback


def statistics(store: Store) -> Statistics:
    """Counts of all that was ever kept, deleted text included.

    Raises:
        StoreError: the store does not answer.
    """
    kinds: dict[str, dict[str, int]] = {}
    with store.database.reading() as connection:
        since = connection.execute(select(func.min(answers.c.created))).scalar()
        refused = connection.execute(select(answers.c.kind, func.count()).group_by(answers.c.kind)).all()
        states = connection.execute(
            select(answers.c.kind, appeals.c.state, func.count())
            .join(answers, appeals.c.answer == answers.c.id)
            .group_by(answers.c.kind, appeals.c.state)
        ).all()
        rated = connection.execute(select(feedback.c.rating, func.count()).group_by(feedback.c.rating)).all()
    for kind, n in refused:
        kinds.setdefault(kind or "unspecified", {})["refused"] = n
    for kind, state, n in states:
        counts = kinds[kind or "unspecified"]
        counts[state] = counts.get(state, 0) + n
        counts["appeals"] = counts.get("appeals", 0) + n
    every: dict[str, int] = {}
    for counts in kinds.values():
        for name, n in counts.items():
            every[name] = every.get(name, 0) + n
    return Statistics(
        since=since,
        every=Tally(**every),
        kinds={kind: Tally(**counts) for kind, counts in sorted(kinds.items())},
        **{rating: n for rating, n in rated},
    )
