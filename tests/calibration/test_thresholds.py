"""Conformal thresholds: the guarantee, by simulation, and the edges."""

import math
import random

import pytest

from demur.calibration.thresholds import conformal_threshold, threshold
from demur.errors import PromptError, SettingsError


@pytest.mark.parametrize(("n", "budget"), [(50, 0.1), (200, 0.05), (99, 0.02)])
def test_a_new_prompt_opens_the_gate_with_at_most_the_budget(n, budget):
    rng = random.Random(0)
    opened = 0
    for _ in range(3000):
        scores = [rng.gauss(0, 1) for _ in range(n + 1)]
        opened += scores[-1] >= conformal_threshold(scores[:-1], budget)
    assert opened / 3000 <= budget + 3 * math.sqrt(budget / 3000)
    assert opened / 3000 >= budget - 1 / (n + 1) - 3 * math.sqrt(budget / 3000)


def test_too_few_scores_for_the_budget_keep_the_gate_shut():
    assert conformal_threshold([1.0, 2.0], 0.1) == math.inf


def test_the_highest_stratum_decides_and_a_small_one_takes_its_maximum():
    line, each = threshold({"plain": list(range(100)), "maths": [500.0]}, {"plain": 0.1, "maths": 0.01})
    assert each["plain"] == math.nextafter(90, math.inf)
    assert line == each["maths"] == math.nextafter(500, math.inf)


def test_errors():
    with pytest.raises(PromptError):
        conformal_threshold([], 0.1)
    with pytest.raises(SettingsError, match="budget for 'code'"):
        threshold({"code": [1.0]}, {"plain": 0.1})
