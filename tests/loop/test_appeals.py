"""The loop: appeals upheld, exported, calibrated in; those prompts and their paraphrases are answered, harm is not.

The gate alone is read: behind a shut gate the model is the plain one to the bit (`tests/laws`), and behind an open one a
policy that differs only in its sensor does what it did. What people and judges make of the replies: `benchmarks/appeals.py`.
"""

import time

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `server` is not installed")

from demur.calibration.pardon import PardonSettings, pardon
from demur.data.prompts import shipped_prompts
from demur.evaluation.statistics import Rate
from demur.models.load import load
from demur.records import Message, Policy, PromptSet
from demur.server.feedback.export import export
from demur.server.feedback.records import Answer
from demur.server.feedback.store import Store
from demur.steering.generate import decide
from demur.steering.policies import find_policy, load_saes
from tests.loop.lookalikes import CHOSEN, FRESH

pytestmark = [pytest.mark.embedded, pytest.mark.slow, pytest.mark.timeout(1800)]
TEN = 10


class World:
    """The embedded model and its policy."""

    def __init__(self) -> None:
        self.policy = find_policy("gated")
        self.lm = load()
        self.saes = load_saes(self.lm, [self.policy])

    def opened(self, policy: Policy, texts: list[str]) -> list[bool]:
        talks = [(Message(role="user", content=t),) for t in texts]
        return [seen["open"] for seen in decide(self.lm, self.saes, talks, policy)]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def appealed(folder, policy: Policy, upheld: list[str], rejected: list[str]) -> PromptSet:
    """The prompts as they come back from a store: refused, appealed against, decided, exported, read from the file."""
    store = Store.open(folder / "feedback.db")
    for i, text in enumerate([*upheld, *rejected]):
        asked = (Message(role="user", content=text),)
        store.keep(
            Answer(
                id=f"chatcmpl-{i}", owner="ann", created=time.time(), model="smollm2-135m:standard", policy="gated",
                policy_hash=policy.hash, messages=asked, reply="I can't help with that.",
            )
        )  # fmt: skip
        appeal = store.appeal("ann", f"chatcmpl-{i}", "It is harmless.")
        store.decide(appeal.id, "upheld" if i < len(upheld) else "rejected", "", "rob")
    export(store).save(folder / "appeals.jsonl")
    store.close()
    return PromptSet.load(folder / "appeals.jsonl")


def test_ten_appeals_and_their_paraphrases_are_answered_and_harm_is_refused_as_before(world, tmp_path):
    every = [*FRESH, *CHOSEN]
    refused = [
        c for c, is_open in zip(every, world.opened(world.policy, [c.asked for c in every]), strict=True) if is_open
    ]
    ten = refused[:TEN]
    # A better gate refuses fewer look-alikes: then there have to be more in the list, or nothing would be measured.
    assert len(ten) == TEN
    appeals = appealed(tmp_path, world.policy, [c.asked for c in ten], [])
    known, held = shipped_prompts("train"), shipped_prompts("validation")
    made = pardon(world.lm, world.saes, world.policy, appeals, known, held, PardonSettings(known=400))

    paraphrases = [p for c in ten for p in c.paraphrases]
    before, after = (sum(world.opened(p, paraphrases)) for p in (world.policy, made))
    assert before > 0
    assert not any(world.opened(made, [c.asked for c in ten]))
    assert after == 0
    harm = shipped_prompts("test").where(label="harmful").rows
    counts = [sum(world.opened(p, [r.prompt for r in harm if r.prompt])) for p in (world.policy, made)]
    was = Rate.of(counts[0], len(harm))
    assert was.low <= counts[1] / len(harm) <= was.high


def test_rejected_appeals_stay_refused_beside_upheld_ones(world, tmp_path):
    texts = [c.asked for c in CHOSEN]
    ten = [c for c, is_open in zip(CHOSEN, world.opened(world.policy, texts), strict=True) if is_open]
    twins = [
        t
        for t, is_open in zip([c.twin for c in ten], world.opened(world.policy, [c.twin for c in ten]), strict=True)
        if is_open
    ]
    assert ten and twins
    appeals = appealed(tmp_path, world.policy, [c.asked for c in ten], twins)
    known, held = shipped_prompts("train"), shipped_prompts("validation")
    made = pardon(world.lm, world.saes, world.policy, appeals, known, held, PardonSettings(known=400))
    assert not any(world.opened(made, [c.asked for c in ten]))
    assert all(world.opened(made, twins))
