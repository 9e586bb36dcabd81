"""Decided appeals as a labelled prompt set: what was wrongly refused is benign, what was rightly refused harmful."""

from demur.errors import AppealError
from demur.records import Prompt, PromptSet
from demur.server.feedback.records import Case, Decision
from demur.server.feedback.store import MOST, Store

KIND = "appeal"
"""The stratum of upheld appeals."""


def export(store: Store, decisions: tuple[Decision, ...] = ("upheld", "rejected")) -> PromptSet:
    """The decided appeals whose text is still there, oldest first.

    Raises:
        AppealError: there are none.
        StoreError: the store does not answer.
    """
    rows = [_prompt(case) for decision in decisions for case in _all(store, decision) if case.answer.messages]
    if not rows:
        raise AppealError(
            f"no appeal is {' or '.join(decisions)} with its text still kept; decide some with `demur feedback resolve`."
        )
    return PromptSet(name="appeals", rows=tuple(rows))


def _all(store: Store, decision: Decision) -> list[Case]:
    found: list[Case] = []
    more = True
    while more:
        some, more = store.cases(decision, MOST, found[-1].appeal.id if found else None)
        found += some
    return found


def _prompt(case: Case) -> Prompt:
    asked, appeal = case.answer.messages or (), case.appeal
    upheld = appeal.state == "upheld"
    said = {"prompt": asked[0].content} if len(asked) == 1 and asked[0].role == "user" else {"messages": asked}
    return Prompt.model_validate(
        {
            "id": appeal.id,
            **said,
            "label": "benign" if upheld else "harmful",
            "kind": KIND if upheld else "harmful",
            "category": case.answer.kind,
            "source": "appeals",
            "extra": {
                "gate": case.answer.gate,
                "policy_hash": case.answer.policy_hash,
                "decided": appeal.decided,
            },
        }
    )
