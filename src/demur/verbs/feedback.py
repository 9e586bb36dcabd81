"""`demur feedback`: the appeals of a server → decisions, a labelled prompt set, counts."""

import getpass
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from demur.errors import FileError, SettingsError
from demur.server.feedback.database import usual_place
from demur.server.feedback.export import export
from demur.server.feedback.records import Case, Decision, State, Tally
from demur.server.feedback.retention import forget
from demur.server.feedback.statistics import statistics
from demur.server.feedback.store import MOST, Store
from demur.verbs.output import drawn, show

Action = Literal["list", "show", "resolve", "export", "delete", "statistics"]


@dataclass(frozen=True)
class _Asked:
    store: Store
    appeal: str
    decision: Decision | None
    note: str
    state: State | None
    owner: str
    out: Path


def feedback_verb(
    action: Action,
    appeal: str = "",
    *,
    decision: Decision | None = None,
    note: str = "",
    state: State | None = None,
    owner: str = "",
    out: Path = Path("appeals.jsonl"),
    store: str = "",
    json: bool = False,
) -> None:
    """List, show and resolve appeals; export the decided ones as prompts; delete a user's text; count.

    Examples
    --------
    demur feedback list --state open
    demur feedback resolve appeal-4f1c --decision upheld --note "A process is no person."
    demur feedback export --out appeals.jsonl
    demur feedback statistics --store postgresql://demur@localhost/demur --json

    Parameters
    ----------
    action
        list (oldest first, the first 500), show, resolve, export, delete, statistics.
    appeal
        Of show and resolve: the appeal's id.
    decision
        Of resolve: upheld (the refusal was wrong) or rejected (it stands). Of export: only those.
    note
        Of resolve: for whoever appealed.
    state
        Of list: only these.
    owner
        Of delete: whose text, by the name of their key.
    out
        Of export: the JSONL file to write; `demur pardon`, `demur find` and `demur calibrate` take it.
    store
        The server's store: a file, or postgresql://USER@HOST/NAME; by default DEMUR_STORE, else the user's own.
    json
        Print one JSON object, and nothing else.
    """
    needed = {"show": appeal, "resolve": appeal and decision, "delete": owner}
    if not needed.get(action, True):
        missing = {"show": "ID", "resolve": "ID --decision upheld", "delete": "--owner NAME"}[action]
        raise SettingsError(f"{action} needs to know more; type demur feedback {action} {missing}.")
    where = store or usual_place()
    if "://" not in where and not Path(where).is_file():
        raise FileError(f"there is no store at {where}; give the one that the server was started with by --store.")
    opened = Store.open(where)
    try:
        body, text = ACTIONS[action](_Asked(opened, appeal, decision, note, state, owner, out))
    finally:
        opened.close()
    show(body, json, text)


def _list(asked: _Asked) -> tuple[dict[str, Any], str]:
    cases, more = asked.store.cases(asked.state, MOST)
    table = Table(box=None, pad_edge=False)
    for column in ("appeal", "filed", "state", "kind", "gate", "asked"):
        table.add_column(column, justify="right" if column == "gate" else "left", no_wrap=column in ("appeal", "filed"))
    for case in cases:
        gate = "" if case.answer.gate is None else f"{case.answer.gate:.2f}"
        row = (case.appeal.id, _day(case.appeal.created), case.appeal.state, case.answer.kind or "-", gate)
        table.add_row(*row, _asked(case)[:80])
    text = drawn(table).rstrip() if cases else "no appeals."
    text += "\nthere are more; --state open shows those to decide." if more else ""
    return {
        "appeals": [c.model_dump(mode="json") for c in cases],
        "more": more,
    }, f"{text}\nnext: demur feedback show ID"


def _show(asked: _Asked) -> tuple[dict[str, Any], str]:
    case = asked.store.case(asked.appeal)
    return case.model_dump(mode="json"), _told(case)


def _resolve(asked: _Asked) -> tuple[dict[str, Any], str]:
    assert asked.decision is not None
    case = asked.store.decide(asked.appeal, asked.decision, asked.note, getpass.getuser())
    return case.model_dump(mode="json"), f"{_told(case)}\nnext: demur feedback export"


def _export(asked: _Asked) -> tuple[dict[str, Any], str]:
    found = export(asked.store, (asked.decision,) if asked.decision else ("upheld", "rejected"))
    found.save(asked.out)
    counts = {label: sum(r.label == label for r in found.rows) for label in ("benign", "harmful")}
    text = (
        f"{counts['benign']} upheld appeals as benign prompts, {counts['harmful']} rejected ones as harmful\n"
        f"wrote {asked.out}\nnext: demur pardon {asked.out} --policy gated"
    )
    return {"out": str(asked.out), "hash": found.hash} | counts, text


def _delete(asked: _Asked) -> tuple[dict[str, Any], str]:
    gone = forget(asked.store, asked.owner)
    return {"deleted": gone}, f"the text of {gone} answers and comments of {asked.owner} is deleted; counts stay."


def _statistics(asked: _Asked) -> tuple[dict[str, Any], str]:
    found = statistics(asked.store)
    table = Table(box=None, pad_edge=False)
    for column in ("kind of harm", *Tally.model_fields):
        table.add_column(column, justify="left" if column == "kind of harm" else "right")
    for kind, tally in (*found.kinds.items(), ("all", found.every)):
        table.add_row(kind.replace("_", " "), *(str(n) for n in tally.model_dump().values()))
    since = f" since {_day(found.since)}" if found.since else ""
    return found.model_dump(
        mode="json"
    ), f"{drawn(table).rstrip()}\nfeedback{since}: {found.good} good, {found.bad} bad"


ACTIONS: dict[Action, Callable[[_Asked], tuple[dict[str, Any], str]]] = {
    "list": _list,
    "show": _show,
    "resolve": _resolve,
    "export": _export,
    "delete": _delete,
    "statistics": _statistics,
}


def _told(case: Case) -> str:
    appeal, answer = case.appeal, case.answer
    gate = "" if answer.gate is None else f", gate {answer.gate:.2f}"
    lines = [
        f"{appeal.id}: {appeal.state}, filed {_day(appeal.created)} by {appeal.owner or 'somebody whose name is deleted'}",
        f"answer {answer.id} of {answer.model}: {answer.policy} ({answer.policy_hash}), {answer.kind or 'no kind'}{gate}",
    ]
    if answer.messages is None:
        return "\n".join([*lines, "its text is deleted."])
    lines += [f"{m.role}: {m.content}" for m in answer.messages]
    lines += [f"reply: {answer.reply}", f"argument: {appeal.argument}"]
    if appeal.decided is not None:
        lines.append(f"{appeal.state} {_day(appeal.decided)} by {appeal.reviewer}: {appeal.note or 'no note'}")
    return "\n".join(lines)


def _asked(case: Case) -> str:
    messages = case.answer.messages
    return " ".join(messages[-1].content.split()) if messages else "(text deleted)"


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
