"""Rates against Wilson's formula and scipy, differences against Newcombe's example, McNemar against the binomial."""

from math import sqrt

import pytest
from scipy.stats import binomtest

from demur.errors import PromptError
from demur.evaluation.statistics import Rate, difference, paired

Z = 1.959963984540054


def wilson(k: int, n: int) -> tuple[float, float]:
    """The interval as Wilson (1927) wrote it: the roots of |p - k/n| = z √(p (1 - p) / n)."""
    centre = (k + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * sqrt(k * (n - k) / n + Z**2 / 4)
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 459), (135, 159), (459, 459), (1, 10), (648, 998)])
def test_wilson(k: int, n: int) -> None:
    rate = Rate.of(k, n)
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert (rate.low, rate.high) == pytest.approx(wilson(k, n), abs=1e-12)
    assert (rate.low, rate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert rate.low <= rate.rate <= rate.high


def test_wilson_by_hand() -> None:
    """5 of 10 with z = 1.96: centre 1/2, half-width 1.96 √(2.5 + 0.9604) / 13.8416 = 0.26341."""
    rate = Rate.of(5, 10)
    assert (rate.rate, rate.low, rate.high) == pytest.approx((0.5, 0.23659, 0.76341), abs=5e-5)


def test_printed() -> None:
    assert str(Rate.of(135, 159)) == "84.9 % [78.5, 89.6] (n = 159)"


def test_saved_and_loaded() -> None:
    rate = Rate.of(135, 159)
    assert Rate.model_validate_json(rate.model_dump_json()) == rate


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(PromptError):
        Rate.of(k, n)


def test_newcombe() -> None:
    """Newcombe (1998), table II (a), method 10: 56/70 against 48/80 gives 0.2 [0.0524, 0.3339]."""
    found = difference(Rate.of(56, 70), Rate.of(48, 80))
    assert found == pytest.approx((20.0, 5.24, 33.39), abs=0.005)
    assert str(found) == "+20.0 points [+5.2, +33.4]"


def test_difference_the_other_way_round() -> None:
    points, low, high = difference(Rate.of(56, 70), Rate.of(48, 80))
    assert difference(Rate.of(48, 80), Rate.of(56, 70)) == pytest.approx((-points, -high, -low))


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 1), (1, 9), (6, 6), (5, 4), (0, 7)])
def test_mcnemar_is_a_binomial_test_on_what_differs(only_a: int, only_b: int) -> None:
    a = [True] * only_a + [False] * only_b + [True, True, False]
    b = [False] * only_a + [True] * only_b + [True, True, False]
    assert paired(a, b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


def test_mcnemar_where_nothing_differs() -> None:
    assert paired([True, False], [True, False]) == 1.0


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_mcnemar_needs_pairs(a: list[bool], b: list[bool]) -> None:
    with pytest.raises(PromptError):
        paired(a, b)
