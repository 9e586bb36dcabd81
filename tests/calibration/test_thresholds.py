"""Conformal thresholds: the guarantee, by simulation, and the edges."""

import math
import random

import numpy as np
import pytest

from demur.calibration.thresholds import conformal_rank, conformal_threshold, just_above, least, promise, threshold
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


BUDGETS = {"plain": 0.02, "lookalike": 0.2, "code": 0.005}
SIZES = {"plain": 120, "lookalike": 60, "code": 150}


def strata(rng: np.random.Generator, sizes: dict[str, int]) -> dict[str, list[float]]:
    """Scores of three strata: one reads more harmful than the others, one has ties."""
    return {
        "plain": rng.normal(0, 1, sizes["plain"]).tolist(),
        "lookalike": rng.normal(1.5, 1, sizes["lookalike"]).tolist(),
        "code": np.round(rng.normal(-1, 1.5, sizes["code"]), 1).tolist(),
    }


def test_one_threshold_for_all_strata_keeps_to_the_budget_of_each():
    """What opens averages to no more than the budget over draws, and to no more than `surely` in 95 % of them."""
    rng, opened, above = np.random.default_rng(0), {s: 0.0 for s in SIZES}, {s: 0 for s in SIZES}
    for _ in range(400):
        binds, each = threshold(strata(rng, SIZES), BUDGETS)
        line = each[binds].threshold
        assert line == max(p.threshold for p in each.values())
        new = strata(rng, dict.fromkeys(SIZES, 4000))
        for name, scores in new.items():
            alone = np.mean(np.array(scores) >= each[name].threshold)
            opened[name] += np.mean(np.array(scores) >= line) / 400
            above[name] += alone > each[name].surely
            assert each[name].share <= BUDGETS[name] or not each[name].kept
    for name, share in opened.items():
        assert share <= max(BUDGETS[name], 1 / (SIZES[name] + 1)) * 1.1, name
        assert above[name] / 400 <= 0.05 + 3 * math.sqrt(0.05 / 400), name


def test_the_rank_of_a_budget_is_the_smallest_that_keeps_it():
    for n in range(1, 300):
        for budget in (0.005, 0.01, 0.02, 0.1, 0.2, 0.35):
            rank = conformal_rank(n, budget)
            assert (n + 1 - rank) / (n + 1) <= budget + 1e-12
            assert (n + 2 - rank) / (n + 1) > budget + 1e-12
            assert (rank <= n) == (n >= least(budget))


def test_too_few_scores_for_the_budget_keep_the_gate_shut():
    assert conformal_threshold([1.0, 2.0], 0.1) == math.inf


def test_the_highest_stratum_decides_and_a_small_one_takes_its_maximum_and_says_so():
    binds, each = threshold({"plain": list(range(100)), "maths": [500.0]}, {"plain": 0.1, "maths": 0.01})
    assert binds == "maths"
    assert each["plain"].threshold == just_above(90) and each["plain"].kept
    assert each["maths"].threshold == just_above(500) and not each["maths"].kept
    assert "1 prompts are too few for 1 % (it takes 99)" in str(each["maths"])
    assert "at most 9.9 % (n = 100)" in str(each["plain"])


@pytest.mark.parametrize("score", [-731.2, -0.5846190452575684, 0.0, 1e-7, 3.25, 88.8])
def test_what_sets_the_threshold_does_not_reach_it_in_single_precision(score):
    """Nor where the parts of its score are summed in another order."""
    line = np.float32(conformal_threshold([score], 0.5))
    parts = np.float32(score / 7) * np.ones(7, dtype=np.float32)
    assert np.float32(score) < line
    assert parts.sum() < line
    assert line - np.float32(score) < 1e-3 * max(1, abs(score))


def test_errors():
    with pytest.raises(PromptError):
        conformal_threshold([], 0.1)
    with pytest.raises(PromptError):
        promise([], 0.1)
    with pytest.raises(SettingsError, match="budget for 'code'"):
        threshold({"code": [1.0]}, {"plain": 0.1})
