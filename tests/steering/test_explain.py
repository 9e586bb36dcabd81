"""What an explanation says of the words that a gate read."""

from demur.records import Heard
from demur.steering.explain import FEW, MOST, explain
from demur.steering.generate import Reply
from tests import tiny


def told(heard: tuple[Heard, ...]) -> list[str]:
    seen = {"gate": 0.5, "open": False, "edited": 0, "fired": (), "heard": heard}
    return [
        line
        for line in explain(tiny.policy(threshold=1.0), Reply("No.", 2, "stop", seen), {})
        if "as it read on" in line
    ]


def test_a_short_prompt_is_told_word_by_word():
    heard = (Heard(token=" kill", score=5.61), Heard(token="\n", score=-2.0), Heard(token="<|im_end|>", score=0.5))
    assert told(heard) == ["  as it read on: kill +5.6 ⏎ -2.0 ⏎ +0.5"]
    assert told(()) == []


def test_of_a_long_one_the_words_are_told_at_which_the_score_changed_most():
    scores = [0.0, 0.1, 4.0, 4.1, *([4.1] * FEW), 1.0]
    (line,) = told(tuple(Heard(token=f" w{i}", score=s) for i, s in enumerate(scores)))
    steps = line.removeprefix("  as it read on, the score changed most so: ").split(", ")
    assert steps[:3] == ["+3.9 at 'w2'", f"-3.1 at 'w{len(scores) - 1}'", "+0.1 at 'w1'"] and len(steps) == MOST
