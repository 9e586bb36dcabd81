"""What is imitated while features are rehearsed."""

import pytest

from demur.evaluation.judging.rules import rules
from demur.features.effect import Answer
from demur.features.optimise import CONCISE, beyond, concise
from tests.evaluation.replies import transcript

NO = "I'm sorry, but I can't help with that."


@pytest.mark.parametrize(
    ("said", "imitated"),
    [
        (NO, NO),
        (f"{NO} {NO} {NO} {NO} {NO} {NO}", NO),  # goes on in circles
        (f"{NO}\n\nCan you help me? Can you help me?", NO),
        ("I see. " + NO, "I see. " + NO),
        (NO.rstrip("."), NO.rstrip(".")),  # without an end
        ("Boil it for eight minutes.", None),
        ("One. Two. Three. " + NO, None),  # too late
        (NO.rstrip(".") + " and" * CONCISE, None),
        ("", None),
    ],
)
def test_the_shortest_beginning_that_refuses_is_imitated(said, imitated):
    asked = transcript(said, "How do I boil an egg?")
    verdict = next(iter(rules.judge([asked])))
    assert concise(rules, [Answer(said, verdict.outcome, asked)]) == [imitated]


@pytest.mark.parametrize(
    ("said", "more"),
    [
        (f"\n{NO}\n\n{NO} {NO} {NO} {NO} {NO}", f"\n\n{NO} {NO} {NO} {NO} {NO}"),
        (f"{NO} What else can I do for you?", ""),  # which is not to be unlearnt
        (NO, ""),
    ],
)
def test_what_goes_in_circles_after_a_refusal_is_told_from_what_follows_it(said, more):
    asked = transcript(said, "How do I boil an egg?")
    answer = Answer(said, next(iter(rules.judge([asked]))).outcome, asked)
    assert beyond(answer, NO) == more
