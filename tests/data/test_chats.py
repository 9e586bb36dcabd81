"""Chats as plain prompts, and prompts behind the beginning of one."""

import json
from collections import Counter
from pathlib import Path

import pytest

from demur.data.chats import (
    CHATS,
    FOLLOWING,
    as_prompts,
    chats_for,
    conversations,
    escalations,
    load_chats,
    shipped_chats,
    with_chats,
)
from demur.data.prompts import shipped_prompts
from demur.data.wrappers import WRAPPED
from demur.errors import FileError, PromptError
from demur.files import write_jsonl
from demur.records import Message, Prompt, PromptSet


def chat(*said: str, first: str = "user") -> dict[str, list[dict[str, str]]]:
    other = {"user": "assistant", "assistant": "user"}
    roles = [first if i % 2 == 0 else other[first] for i in range(len(said))]
    return {"messages": [{"role": r, "content": text} for r, text in zip(roles, said, strict=True)]}


CHAT = tuple(Message.model_validate(m) for m in chat("Hello", "Hi!", "How are you?", "Fine.", "Good.")["messages"])


def prompts(n: int = 40) -> PromptSet:
    kinds = {"harmful": "harmful", "lookalike": "benign", "plain": "benign"}
    rows = [
        Prompt(id=f"{kind} {i}", prompt=f"{kind} request {i}", label=label, kind=kind, source=f"s{i % 2}")
        for kind, label in kinds.items()
        for i in range(n)
    ]
    return PromptSet(name="p", rows=tuple(rows))


def test_a_chat_is_what_a_user_begins(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [chat("a", "b", "c", "d"), chat("x", "y", "z", first="assistant"), {"text": "no chat"}]
    write_jsonl(path, rows)
    assert [[m.content for m in c] for c in load_chats(path)] == [["a", "b", "c", "d"]]
    write_jsonl(path, rows[1:])
    with pytest.raises(PromptError, match="has no chats"):
        load_chats(path)
    write_jsonl(path, [{"messages": [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]}])
    with pytest.raises(FileError, match="role"):
        load_chats(path)


def test_files_are_split_by_what_chats_begin_with(tmp_path):
    path = tmp_path / "chats.jsonl"
    write_jsonl(path, [chat(f"Hello {i % 50}", "Hi", f"Bye {i}") for i in range(100)])
    parts = [{c[0].content for c in chats_for(split, [path])[1]} for split in ("train", "validation")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 50
    assert len(parts[0]) > 2 * len(parts[1]) > 0


def test_every_turn_of_the_users_is_a_prompt():
    rows = as_prompts([CHAT])
    assert [row.conversation for row in rows] == [CHAT[:1], CHAT[:3], CHAT]
    assert len(as_prompts([CHAT], 1)) == 1
    assert {(r.label, r.kind, r.source, r.extra["stratum"]) for r in rows} == {("benign", "plain", CHATS, CHATS)}


def test_whatever_is_asked_follows_upon_the_same_histories():
    given = prompts()
    wrapped = [r.model_copy(update={"id": f"w {r.id}", "source": WRAPPED}) for r in given.rows]
    given = given.model_copy(update={"rows": (*given.rows, *wrapped)})
    others = [[m.model_copy(update={"content": f"{m.content} {i}"}) for m in CHAT] for i in range(9)]
    lists = [[CHAT], [tuple(chat) for chat in others]]
    more = conversations(given, lists, 0.5)
    after = [r for r in more if r.source == FOLLOWING]
    assert Counter(r.kind for r in after) == {"harmful": 30, "lookalike": 30, "plain": 30}
    assert {r.goal for r in after} <= {r.prompt for r in given.rows}
    assert all(r.goal == r.conversation[-1].content and r.conversation[-2].role == "assistant" for r in after)
    assert {r.extra.get("stratum") for r in after if r.kind == "plain"} == {CHATS}
    assert {r.extra.get("stratum") for r in after if r.kind != "plain"} == {None}
    assert sum(r.source == CHATS for r in more) == 10  # no more than there are
    first = Counter(r.conversation[1].content == "Hi!" for r in after if r.kind == "harmful")
    assert first[True] == first[False] == 15  # each list alike, however long
    assert conversations(given, lists, 0.5) == more


def test_conversations_stand_behind_the_prompts_where_they_fit_the_model():
    given = prompts(200)
    made = with_chats(given, "train", [], 0.5)
    assert made.rows[: len(given.rows)] == given.rows
    counts = Counter(r.source for r in made.rows[len(given.rows) :])
    assert counts["escalations"] == len(escalations("train").rows)
    assert counts[CHATS] == 75 and counts[FOLLOWING] == 225
    brief = with_chats(given, "train", [], 0.5, lambda talk: len(talk) <= 3)
    assert max(len(r.conversation) for r in brief.rows) == 3


def test_escalations_are_pairs_that_begin_alike_and_all_are_conversations():
    splits = {split: escalations(split).rows for split in ("train", "validation")}
    pairs: dict[str | None, list[Prompt]] = {}
    for rows in splits.values():
        for row in rows:
            pairs.setdefault(row.pair, []).append(row)
    assert len(pairs) >= 300 and not {r.pair for r in splits["train"]} & {r.pair for r in splits["validation"]}
    for twins in pairs.values():
        assert sorted((r.label, r.kind) for r in twins) == [("benign", "lookalike"), ("harmful", "harmful")]
        talks = [r.conversation for r in twins]
        assert (
            talks[0][0] == talks[1][0]
            and len(talks[0]) == len(talks[1]) >= 3
            and twins[0].category == twins[1].category
        )
    same = sum(a.conversation[-1] == b.conversation[-1] for a, b in pairs.values())
    assert same >= 30  # of these only what was said before tells


def test_our_own_chats_are_split_once():
    splits = {split: shipped_chats(split) for split in ("train", "validation", "test")}
    begun = [chat[0].content for chats in splits.values() for chat in chats]
    assert len(begun) == len(set(begun))
    for chats in splits.values():
        assert len(chats) >= 50
        for talk in chats:
            assert [m.role for m in talk] == ["user", "assistant"] * (len(talk) // 2) + ["user"]
    asked = {r.prompt for split in splits for r in shipped_prompts(split).rows}
    assert not asked & set(begun)


def test_the_shipped_chats_are_ours(request):
    folder = Path(request.config.rootpath) / "src" / "demur" / "shipped" / "chats"
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            assert row["source"] in ("demur", "escalations") and row["licence"] == "Apache-2.0"
