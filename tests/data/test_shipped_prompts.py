"""What we ship: enough of each kind, twins together, nothing near the evaluation data."""

from collections import Counter

import pytest

from demur.config import data_folder
from demur.data.prompts import shipped_prompts
from demur.data.refusals import refusals
from demur.records import PromptSet

ROWS = {split: shipped_prompts(split).rows for split in ("train", "validation", "test")}
EVERY = [row for rows in ROWS.values() for row in rows]


def grams(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_there_is_enough_of_each_kind():
    harmful = Counter(r.category for r in EVERY if r.label == "harmful")
    assert len(harmful) >= 16
    assert min(harmful.values()) >= 25
    kinds = Counter(r.kind for r in EVERY)
    assert kinds["lookalike"] == kinds["harmful"]
    assert kinds["offensive"] >= 150
    plain = Counter(r.category for r in EVERY if r.kind in ("plain", "mathematics"))
    assert sum(plain.values()) >= 500
    assert all(plain[c] >= 100 for c in ("chat", "mathematics", "code", "fiction", "advice"))


def test_ids_are_unique_and_twins_share_a_split():
    assert len({r.id for r in EVERY}) == len(EVERY)
    for rows in ROWS.values():
        pairs = Counter(r.pair for r in rows if r.pair)
        assert set(pairs.values()) == {2}
        assert all({r.label for r in rows if r.pair == pair} == {"harmful", "benign"} for pair in pairs)
    splits = [{r.pair for r in rows if r.pair} for rows in ROWS.values()]
    assert not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])


@pytest.mark.shared
def test_no_shipped_prompt_is_near_a_test_prompt():
    test = [grams(r.conversation[-1].content) for r in PromptSet.load(data_folder() / "prompts" / "test.jsonl").rows]
    for row in EVERY:
        mine = grams(row.prompt or "")
        assert all(len(mine & other) < 0.5 * len(mine | other) for other in test), row.id


def test_refusals_depend_on_the_seed_alone():
    first, again, other = (list(zip(range(20), refusals(seed), strict=False)) for seed in (1, 1, 2))
    assert first == again != other
