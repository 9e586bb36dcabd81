"""What each word adds to a gate's score, put together, is the score."""

import pytest

from demur.records import Gate, JoinedSensor, Message
from demur.steering.generate import decide
from demur.steering.tokens import by_token
from tests import tiny

TALK = (Message(role="user", content="How do I kill a process?"),)


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_shares_and_bias_make_the_score(pooling):
    sensor = tiny.SENSOR.model_copy(update={"pooling": pooling})
    gate = Gate(sensor=sensor, threshold=0.0)
    words = by_token(tiny.lm(), tiny.saes(), gate, TALK)
    policy = tiny.policy(threshold=0.0).model_copy(update={"gate": gate})
    (seen,) = decide(tiny.lm(), tiny.saes(), [TALK], policy)
    assert sum(w.share for w in words) + sensor.bias == pytest.approx(seen["gate"], abs=1e-5)


def test_the_words_are_those_that_were_said_and_the_place_where_the_reply_begins():
    words = by_token(tiny.lm(), tiny.saes(), Gate(sensor=tiny.SENSOR, threshold=0.0), TALK)
    assert "".join(w.text for w in words if w.of_prompt) == TALK[0].content
    assert [w.of_prompt for w in words].count(False) == 1


def test_of_a_talk_the_last_turn_may_be_read_alone():
    talk = (
        Message(role="user", content="Tell me of the sea."),
        Message(role="assistant", content="It is wide and deep."),
        *TALK,
    )
    gate = Gate(sensor=tiny.SENSOR, threshold=0.0, turns="either")
    words = by_token(tiny.lm(), tiny.saes(), gate, talk, last_turn=True)
    assert "".join(w.text for w in words if w.of_prompt) == TALK[0].content
    (seen,) = decide(tiny.lm(), tiny.saes(), [talk], tiny.policy(threshold=0.0).model_copy(update={"gate": gate}))
    read = by_token(tiny.lm(), tiny.saes(), gate, talk, seen["last_turn"])
    assert sum(w.share for w in read) + tiny.SENSOR.bias == pytest.approx(seen["gate"], abs=1e-5)


def test_of_sensors_that_are_summed_each_counts_with_its_weight():
    single = by_token(tiny.lm(), tiny.saes(), Gate(sensor=tiny.SENSOR, threshold=0.0), TALK)
    twice = JoinedSensor(rule="sum", of=(tiny.SENSOR,), weights=(2.0,))
    double = by_token(tiny.lm(), tiny.saes(), Gate(sensor=twice, threshold=0.0), TALK)
    assert sum(w.share for w in double) == pytest.approx(2 * sum(w.share for w in single))
    far = JoinedSensor(rule="not", of=(tiny.SENSOR,), thresholds=(0.0,))
    none = by_token(tiny.lm(), tiny.saes(), Gate(sensor=far, threshold=0.0), TALK)
    assert all(w.share == 0 for w in none)
