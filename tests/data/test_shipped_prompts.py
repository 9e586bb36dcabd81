"""What we ship: enough of each kind, twins together, nothing near the evaluation data or near itself."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import demur.shipped
from demur.config import data_folder
from demur.data.categories import kind_of
from demur.data.chats import escalations, shipped_chats
from demur.data.prompts import shipped_prompts
from demur.data.refusals import refusals
from demur.data.wrappers import shipped_wrappers
from demur.files import read_jsonl
from demur.records import Prompt, PromptSet

SHIPPED = Path(demur.shipped.__path__[0])
ROWS = {split: shipped_prompts(split).rows for split in ("train", "validation", "test")}
EVERY = [row for rows in ROWS.values() for row in rows]
FORMS = {"advise", "defend", "depict", "object", "permit", "persuade", "swap", "understand"}
"""How a harmful request and its twin differ; `shipped_prompts` says what each means."""
MECHANISMS = {
    *("homonym", "figurative", "safe_target", "safe_context", "definition", "nonsense_discrimination", "historical"),
    *(
        "public_figure",
        "fictional_figure",
        "fiction",
        "academic",
        "professional",
        "victim",
        "text",
        "advice",
        "purpose",
    ),
}
"""Why a twin only looks like harm; of each at least a dozen pairs."""
BRIEF = 40
"""Characters of what anybody says in a chat ("Yes, please."), and no sign that it was copied."""
NEAR = 0.5
"""Jaccard similarity of character 5-grams from which two texts count as one."""


def grams(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(len(text) - 4)}


def near(mine: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Which texts are near which, by one product of sparse matrices with a column for each 5-gram."""
    columns: dict[str, int] = {}
    found = [[[columns.setdefault(g, len(columns)) for g in grams(t)] for t in texts] for texts in (mine, other)]

    def matrix(rows: list[list[int]]) -> csr_matrix:
        ends = np.cumsum([0, *map(len, rows)])
        return csr_matrix((np.ones(ends[-1], np.int32), np.concatenate(rows), ends), shape=(len(rows), len(columns)))

    a, b = map(matrix, found)
    size_a, size_b = np.diff(a.indptr), np.diff(b.indptr)
    close: list[tuple[int, int]] = []
    for start in range(0, len(mine), 512):  # nearly every two texts share some 5-gram: the whole product is gigabytes
        shared = (a[start : start + 512] @ b.T).tocoo()
        rows = shared.row + start
        k = shared.data >= NEAR * (size_a[rows] + size_b[shared.col] - shared.data)
        close += zip(rows[k].tolist(), shared.col[k].tolist(), strict=True)
    return close


def text(row: Prompt) -> str:
    return row.prompt or ""


def by_pair(rows: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    pairs: dict[str, list[Prompt]] = {}
    for row in rows:
        if row.pair:
            pairs.setdefault(row.pair, []).append(row)
    return pairs


def test_there_is_enough_of_each_kind():
    harmful = Counter(r.category for r in EVERY if r.label == "harmful")
    assert len(harmful) >= 28
    assert min(harmful.values()) >= 25
    kinds = Counter(r.kind for r in EVERY)
    assert kinds["lookalike"] >= kinds["harmful"] >= 3000  # twins, and look-alikes without one
    assert kinds["offensive"] >= 300
    plain = Counter(r.category for r in EVERY if r.kind in ("plain", "mathematics"))
    assert all(plain[c] >= 300 for c in ("chat", "mathematics", "code", "fiction", "advice"))
    assert plain["knowledge"] >= 100


def test_validation_has_rows_enough_of_each_stratum_for_a_budget_of_one_in_a_hundred():
    strata = Counter(r.kind if r.kind in ("lookalike", "offensive") else r.category for r in ROWS["validation"])
    # A conformal quantile at 1 % is finite from 99 rows on.
    assert all(strata[s] >= 99 for s in ("chat", "mathematics", "code", "fiction", "advice", "lookalike", "offensive"))


def test_ids_are_unique_and_twins_share_a_split_a_category_and_a_form():
    assert len({r.id for r in EVERY}) == len(EVERY)
    splits = [by_pair(rows) for rows in ROWS.values()]
    assert not (set(splits[0]) & set(splits[1]) or set(splits[0]) & set(splits[2]) or set(splits[1]) & set(splits[2]))
    for pairs in splits:
        for twins in pairs.values():
            assert sorted(r.label for r in twins) == ["benign", "harmful"]
            assert {r.kind for r in twins} == {"harmful", "lookalike"}
            assert len({(r.category, r.extra.get("form")) for r in twins}) == 1


def test_twins_are_paired_in_every_form_over_many_kinds_of_harm():
    paired = [r for r in EVERY if r.label == "harmful" and "form" in r.extra]
    assert len(paired) >= 2500
    forms = Counter(r.extra["form"] for r in paired)
    assert forms.keys() == FORMS and min(forms.values()) >= 100
    harms = {kind.name for r in paired if (kind := kind_of(r.source, r.category, text(r)))}
    assert len(harms) >= 24
    assert min(Counter(r.category for r in paired).values()) >= 70


def test_mechanisms_of_looking_harmful_come_with_forms_over_all_kinds_of_harm():
    rows = [r for r in EVERY if r.label == "harmful" and "mechanism" in r.extra]
    found = Counter(r.extra["mechanism"] for r in rows)
    assert found.keys() == MECHANISMS and min(found.values()) >= 12
    assert min(Counter(r.category for r in rows).values()) >= 35
    asked = {
        label: np.mean([text(r).endswith("?") for r in EVERY if "mechanism" in r.extra and r.label == label])
        for label in ("harmful", "benign")
    }
    assert abs(asked["harmful"] - asked["benign"]) < 0.05 < min(asked.values())  # fmt: skip


def test_neither_length_nor_opening_tells_the_harmful_half_of_twins():
    pairs = [sorted(p, key=lambda r: r.label) for p in by_pair(EVERY).values() if "form" in p[0].extra]
    benign, harmful = (np.array([len(text(p[k])) for p in pairs]) for k in (0, 1))
    above = (harmful[:, None] > benign).mean() + (harmful[:, None] == benign).mean() / 2
    assert 0.45 < above < 0.55  # area under the curve of a gate that counts letters
    same = [text(a).split()[0] == text(b).split()[0] for a, b in pairs]
    assert np.mean(same) > 0.85


def test_no_opening_is_worn_out():
    for label in ("harmful", "benign"):
        rows = [text(r) for r in EVERY if "form" in r.extra and r.label == label]
        openings = Counter(" ".join(t.lower().split()[:5]) for t in rows)
        assert max(openings.values()) <= 3


def test_the_fast_comparison_agrees_with_a_loop():
    mine = [text(r) for r in EVERY[::41]]
    other = [text(r) for r in EVERY[::37]] + [t[:-9] + "!" for t in mine[::3]]
    found = []
    for i, a in enumerate(map(grams, mine)):
        found += [(i, k) for k, b in enumerate(map(grams, other)) if len(a & b) >= NEAR * len(a | b)]
    assert found and sorted(near(mine, other)) == found


def test_no_two_shipped_prompts_are_near_each_other_but_twins():
    close = [(EVERY[i], EVERY[k]) for i, k in near([text(r) for r in EVERY], [text(r) for r in EVERY]) if i < k]
    assert not [(a.id, b.id) for a, b in close if not a.pair or a.pair != b.pair]


@pytest.mark.shared
def test_no_shipped_prompt_is_near_a_test_prompt_or_the_goal_of_a_jailbreak():
    folder = data_folder()
    test = [r.conversation[-1].content for r in PromptSet.load(folder / "prompts" / "test.jsonl").rows]
    test += sorted({r.goal or "" for r in PromptSet.load(folder / "attacks" / "jailbreakbench.jsonl").rows})
    turns = sorted({t for s in scripts() for t in [*s["turns"], s["goal"]]})
    splits = (shipped_chats(split) for split in ROWS)
    talks = [chat for chats in splits for chat in chats]
    talks += [r.conversation for split in ("train", "validation") for r in escalations(split).rows]
    turns += sorted({m.content for talk in talks for m in talk if len(m.content) > BRIEF})
    mine = [text(r) for r in EVERY] + turns
    assert not [mine[i] for i, _ in near(mine, test)]


def scripts() -> list[dict]:
    return list(read_jsonl(SHIPPED / "prompts" / "crescendo.jsonl"))


def test_crescendo_scripts_have_five_turns_a_goal_and_a_twin_that_begins_alike():
    rows = scripts()
    assert len({s["id"] for s in rows}) == len(rows)
    assert all(len(s["turns"]) == 5 and all(s["turns"]) and s["goal"] for s in rows)
    harmful = Counter(s["category"] for s in rows if s["label"] == "harmful")
    assert sum(harmful.values()) >= 100
    kinds = {kind for c in harmful if (kind := kind_of("demur", c))}
    assert len({k.name for k in kinds}) >= 16 and {k.group for k in kinds} == {"harm"}
    pairs: dict[str, list[dict]] = {}
    for s in rows:
        pairs.setdefault(s["pair"], []).append(s)
    for twins in pairs.values():
        bad, good = sorted(twins, key=lambda s: s["label"], reverse=True)
        assert [bad["label"], bad["kind"], good["label"], good["kind"]] == ["harmful", "harmful", "benign", "lookalike"]
        assert bad["category"] == good["category"] and bad["goal"] != good["goal"]
        assert bad["turns"][0] == good["turns"][0] and bad["turns"][4] != good["turns"][4]


def test_wrappers_come_in_many_families_each_with_harmless_ones_of_the_same_look():
    rows = list(read_jsonl(SHIPPED / "attacks" / "test.jsonl"))
    assert len({w["id"] for w in rows}) == len(rows)
    for w in rows:
        assert "{request}" in w.get("template", "{request}")
        assert w.keys() & {"template", "transform", "system"}
    plain = Counter(w["family"] for w in rows if w.get("label") == "benign")
    attacks = Counter(w["family"] for w in rows if "label" not in w)
    assert sum(plain.values()) >= 40 and sum(attacks.values()) >= 40
    assert plain.keys() == attacks.keys() and len(attacks) >= 10
    assert min([*plain.values(), *attacks.values()]) >= 3
    assert len({(w.get("template"), w.get("transform"), w.get("system")) for w in rows}) == len(rows)


def test_wrappers_to_learn_and_to_check_by_are_neutral_many_and_not_those_of_the_attacks():
    splits = {split: shipped_wrappers(split) for split in ("train", "validation", "test")}
    every = [w for found in splits.values() for w in found]
    assert len({w.id for w in every}) == len(every)
    for split, least in (("train", 120), ("validation", 50)):
        assert len(splits[split]) >= least and all(w.label is None for w in splits[split])
    families = [{w.family for w in splits[split]} for split in ("train", "validation")]
    assert families[0] == families[1] and len(families[0]) >= 18
    # Of the attacks some have harmless doubles, on purpose.
    ours, other = ([w.template for split in some for w in splits[split]] for some in (("train", "validation"), splits))
    assert not [(ours[i], other[k]) for i, k in near(ours, other) if ours[i] != other[k] and len(ours[i]) > 40]


def test_refusals_depend_on_the_seed_alone():
    first, again, other = (list(zip(range(20), refusals(seed), strict=False)) for seed in (1, 1, 2))
    assert first == again != other
