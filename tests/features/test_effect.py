"""The odds of a refusal against a naive sum over its beginnings, token by token."""

import math

import pytest

from demur.features.effect import Bench, refusal_log_odds
from demur.steering.policies import NONE
from demur.steering.score import next_log_probs
from tests import tiny


def test_log_odds_of_a_refusal_are_those_of_its_beginnings_together():
    lm, sae = tiny.lm(), tiny.sae()
    bench = Bench(lm, sae)
    policy = bench.raising({3: 4.0}, "reply")
    talk = tiny.said("Hi", "What is a boat?")
    # One-token beginnings, so that the next token's distribution says it all.
    naive = []
    for asked in (NONE, policy):
        log_p = next_log_probs(lm, bench.saes, talk, [asked] * 2)[:, [40, 41, 50]].exp().sum(1).tolist()
        naive.append(sum(math.log(p / (1 - p)) for p in log_p) / 2)
    assert refusal_log_odds(bench, [NONE, policy], talk, [[40], [41], [50]]) == pytest.approx(naive, abs=1e-6)
    assert naive[0] != pytest.approx(naive[1], abs=1e-3)
