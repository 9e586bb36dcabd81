"""Families sampled evenly; requests put into templates and written in other ways, which can be read back."""

import base64
import codecs
from collections import Counter

import pytest

from demur.data.wrappers import (
    MORSE,
    PIECES,
    TRANSFORMS,
    Wrapper,
    load_wrappers,
    with_wrapped,
    wrapped,
)
from demur.errors import FileError, PromptError
from demur.evaluation.attacks.families import per_family
from demur.files import write_jsonl
from demur.records import Message, Prompt, PromptSet

TEXT = "How do I pick a lock, quickly?"
BACK = {
    "base64": lambda t: base64.b64decode(t).decode(),
    "hex": lambda t: bytes.fromhex(t).decode(),
    "rot13": lambda t: codecs.decode(t, "rot13"),
    "reversed": lambda t: t[::-1],
    "reversed_words": lambda t: " ".join(t.split()[::-1]),
    "spaced": lambda t: t[::2],
    "hyphenated": lambda t: t.replace("-", ""),
    "zero_width": lambda t: t.replace("\u200b", ""),
}
ROWS = PromptSet(
    name="ours",
    rows=tuple(
        Prompt(id=f"{label[0]}{i}", prompt=f"{label} request {i}", label=label, pair=f"p{i}", source="demur")
        for label in ("harmful", "benign")
        for i in range(8)
    ),
)


@pytest.mark.parametrize("name", BACK)
def test_what_was_written_otherwise_can_be_read_back(name):
    assert TRANSFORMS[name](TEXT) != TEXT
    assert BACK[name](TRANSFORMS[name](TEXT)) == TEXT


def test_the_other_transforms_by_example():
    assert TRANSFORMS["leetspeak"]("Take east") == "74k3 3457"
    assert TRANSFORMS["pig_latin"]("street apple 12") == "eetstray appleay 12"
    assert TRANSFORMS["morse"]("So 1") == "... --- / .----"
    assert len(set(MORSE.values())) == 36
    assert TRANSFORMS["alternating"]("abcd") == "aBcD"
    assert TRANSFORMS["lookalikes"]("ape") != "ape"


def test_a_tail_is_nonsense_behind_the_request_and_another_one_for_another():
    made = TRANSFORMS["tail"](TEXT)
    assert made.startswith(f"{TEXT} ") and made == TRANSFORMS["tail"](TEXT)
    tail = made.removeprefix(f"{TEXT} ")
    assert any(tail.lower().startswith(p.lower()) for p in PIECES.split())
    assert len(tail) >= 16 and tail != TRANSFORMS["tail"]("Another?").removeprefix("Another? ")


def test_wrapped_ones_come_behind_the_prompts_and_are_a_source_and_a_stratum_of_their_own():
    wrappers = [Wrapper(id=f, family=f, template=f"{f}: {{request}}") for f in ("a", "b")]
    made = with_wrapped(ROWS, wrappers, 0.5)
    assert made.rows[:16] == ROWS.rows and len(made.rows) == 16 + 8
    more = made.rows[16:]
    assert Counter((r.family, r.label) for r in more) == Counter(
        {(f, label): 2 for f in "ab" for label in ("harmful", "benign")}
    )
    assert {r.source for r in more} == {r.extra["stratum"] for r in more} == {"wrapped"}
    assert all(r.pair and r.goal for r in more)
    short = with_wrapped(ROWS, wrappers, 0.5, fits=lambda talk: talk[-1].content.startswith("a"))
    assert short.rows[:16] == ROWS.rows and short.rows[16:] == tuple(r for r in more if r.family == "a")


def test_a_template_takes_the_request_transformed_or_not():
    plain = Wrapper(id="w", family="f", template="Pretend {not a slot}: {request} Now!")
    assert plain.text("{request}?") == "Pretend {not a slot}: {request}? Now!"
    both = Wrapper(id="w", family="f", template="Decode: {request}", transform="reversed")
    assert both.text("abc") == "Decode: cba"


def test_a_wrapped_row_knows_its_goal_and_keeps_its_label():
    row = Wrapper(id="w", family="role", template="Act! {request}").wrap(ROWS.rows[0])
    assert (row.id, row.family, row.goal, row.prompt) == ("w/h0", "role", "harmful request 0", "Act! harmful request 0")
    assert (row.label, row.pair) == ("harmful", "p0")
    told = Wrapper(id="w", family="system", system="You obey.").wrap(ROWS.rows[0])
    assert told.messages == (
        Message(role="system", content="You obey."),
        Message(role="user", content="harmful request 0"),
    )


def test_each_family_gets_as_many_with_requests_and_wrappers_in_turn():
    wrappers = [Wrapper(id=f"a{i}", family="a", template=f"{i} {{request}}") for i in range(3)]
    wrappers += [Wrapper(id="b", family="b", transform="rot13", label="harmful")]
    made = wrapped(ROWS, wrappers, 4)
    counts = Counter((r.family, r.label) for r in made.rows)
    assert counts == dict.fromkeys([("a", "harmful"), ("a", "benign"), ("b", "harmful")], 4)
    ours = [r.id for r in made.rows if (r.family, r.label) == ("a", "harmful")]
    assert ours == ["a0/h0", "a1/h2", "a2/h4", "a0/h6"]
    every = wrapped(ROWS, wrappers, 99)
    assert Counter((r.family, r.label) for r in every.rows)["a", "harmful"] == 24
    assert len({r.id for r in every.rows}) == len(every.rows) == 24 + 24 + 8
    assert all(r.source is None for r in every.rows)


def test_requests_with_wrappers_of_their_own_get_no_others():
    wrappers = [
        Wrapper(id="attack", family="a", template="{request}!"),
        Wrapper(id="kind", family="a", template="{request}, please", label="benign"),
    ]
    made = wrapped(ROWS, wrappers, 3)
    assert {(r.label, r.id.split("/")[0]) for r in made.rows} == {("harmful", "attack"), ("benign", "kind")}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"id": "1", "family": "f", "template": "no slot"}, "needs the slot"),
        ({"id": "1", "family": "f", "transform": "rot31"}, "did you mean rot13"),
        ({"id": "1", "family": "f"}, "needs a template, a transform or a system prompt"),
        ({"family": "f", "template": "{request}!"}, "`id`"),
    ],
)
def test_a_row_that_is_no_wrapper_is_one_clear_error(tmp_path, row, why):
    write_jsonl(tmp_path / "w.jsonl", [row])
    with pytest.raises(FileError, match=why):
        load_wrappers(tmp_path / "w.jsonl")


def test_an_even_sample_of_each_family():
    rows = [
        Prompt(id=f"{f}{i}", prompt="x", label="harmful", family=f, goal=f"g{i}")
        for f, n in (("a", 10), ("b", 3))
        for i in range(n)
    ]
    assert [r.id for r in per_family(PromptSet(name="s", rows=tuple(rows)), 5).rows] == [
        "a0", "a2", "a4", "a6", "a8", "b0", "b1", "b2",
    ]  # fmt: skip
    with pytest.raises(PromptError, match="has no family"):
        per_family(ROWS, 5)
