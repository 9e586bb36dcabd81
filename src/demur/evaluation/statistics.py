"""Rates, means and areas with their intervals, and what may be said of several policies.

All intervals are at 95 %. scipy and statsmodels take a second to import, so each function imports them when called.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field

from demur.errors import PromptError
from demur.records import Area, Rate, Record

RESAMPLES = 2000
"""Bootstrap resamples of an interval: enough for its second figure."""
CELLS = 2_000_000
"""Numbers drawn at a time."""


class Difference(NamedTuple):
    """One rate less another, in percentage points, with its interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} points [{self.low:+.1f}, {self.high:+.1f}]"


def difference(a: Rate, b: Rate) -> Difference:
    """`a` less `b`, for independent samples (Newcombe, 1998, method 10)."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(a.k, a.n, b.k, b.n, method="newcomb", compare="diff")
    return Difference(100 * (a.rate - b.rate), 100 * float(low), 100 * float(high))


def paired(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The exact two-sided McNemar p: do two policies differ on the same prompts, given in the same order?

    Raises:
        PromptError: the two are not of one length, or are empty.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if len(a) != len(b) or not a:
        raise PromptError(f"{len(a)} and {len(b)} outcomes; expected the same prompts on both sides, at least one.")
    pairs = list(zip(a, b, strict=True))
    table = [[sum((bool(x), bool(y)) == (i, j) for x, y in pairs) for j in (True, False)] for i in (True, False)]
    test: Any = mcnemar(table, exact=True)
    return min(1.0, float(test.pvalue))


class Mean(Record):
    """A mean over `n` rows with its bootstrap interval, in the unit of what was averaged."""

    n: int = Field(ge=1)
    mean: float
    low: float | None
    """None, as `high`, where all rows are of one cluster: what they would say another time cannot be known."""
    high: float | None

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        sizes: Sequence[float] | None = None,
        clusters: Sequence[Hashable] | None = None,
        seed: int = 0,
    ) -> Self:
        """Σ values / Σ sizes, with the interval of a bias-corrected and accelerated bootstrap (Efron, 1987).

        Args:
            values: One a row; with `sizes`, a sum over so many things (nats of a reply's tokens, say).
            sizes: None is 1 each, so that the figure is the plain mean. Rows of size 0 have nothing to say and are
                left out, of `n` too.
            clusters: What each row belongs to (a goal, a pair; None is a row by itself). Whole clusters are drawn,
                since rows that share one are no independent witnesses (Cameron and Miller, 2015).
            seed: Of the resampling.

        Raises:
            PromptError: no row, none of any size, or columns of different lengths.
        """
        columns = _columns([values, [1.0] * len(values) if sizes is None else sizes])
        kept = columns[1] > 0
        low, high = bootstrapped(columns[:, kept], _ratio, _kept(clusters, kept), seed)
        return cls(n=int(kept.sum()), mean=float(_ratio(*columns[:, kept].sum(1))), low=low, high=high)

    @classmethod
    def change(
        cls,
        after: tuple[Sequence[float], Sequence[float]],
        before: tuple[Sequence[float], Sequence[float]],
        clusters: Sequence[Hashable] | None = None,
        seed: int = 0,
    ) -> Self:
        """`after` less `before`: the difference of two such figures on the same rows, in the same order.

        Each is (values, sizes) as `of` takes them; a row that has size 0 in either is left out of both.

        Raises:
            PromptError: no row, none of any size in both, or columns of different lengths.
        """
        columns = _columns([*after, *before])
        kept = (columns[1] > 0) & (columns[3] > 0)
        low, high = bootstrapped(columns[:, kept], _less, _kept(clusters, kept), seed)
        return cls(n=int(kept.sum()), mean=float(_less(*columns[:, kept].sum(1))), low=low, high=high)

    def __str__(self) -> str:
        spread = "no interval" if self.low is None or self.high is None else f"[{self.low:.3g}, {self.high:.3g}]"
        return f"{self.mean:.3g} {spread} (n = {self.n})"


def _ratio(values: Any, sizes: Any) -> Any:
    return values / sizes


def _less(values: Any, sizes: Any, other: Any, other_sizes: Any) -> Any:
    return values / sizes - other / other_sizes


def _columns(columns: Sequence[Sequence[float]]) -> np.ndarray:
    if len({len(c) for c in columns}) != 1:
        raise PromptError(f"columns of {[len(c) for c in columns]} rows; expected the same rows in each.")
    found = np.asarray(columns, dtype=float)
    if not (found[1::2] > 0).all(0).any():
        raise PromptError("a mean of no rows; give at least one with something in it.")
    return found


def _kept(clusters: Sequence[Hashable] | None, kept: np.ndarray) -> list[Hashable]:
    clusters = [None] * len(kept) if clusters is None else clusters
    if len(clusters) != len(kept):
        raise PromptError(f"{len(clusters)} cluster names for {len(kept)} rows; give one for each.")
    return [name for name, keep in zip(clusters, kept, strict=True) if keep]


def bootstrapped(
    columns: np.ndarray, statistic: Callable[..., Any], clusters: Sequence[Hashable], seed: int
) -> tuple[float | None, float | None]:
    """The interval of a statistic of the columns' sums, clusters (None: a row by itself) resampled.

    Args:
        columns: [columns, rows].
        statistic: Takes one array a column, all of one shape, and gives an array of that shape.
        clusters: One name a row.
        seed: Of the resampling.

    Returns:
        None and None where there is but one cluster.
    """
    # scipy draws, corrects and accelerates.
    from scipy.stats import DegenerateDataWarning, bootstrap

    sums = _summed(columns, clusters)
    if sums.shape[1] < 2:
        return None, None
    whole = sums.sum(1, keepdims=True)
    without = statistic(*(whole - sums))
    if np.ptp(without) <= 1e-12 * (1 + abs(without[0])):  # all clusters say the same; nothing to accelerate by
        return (same := float(statistic(*whole[:, 0]))), same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(
            tuple(sums),
            lambda *parts, axis: statistic(*(part.sum(axis) for part in parts)),
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=RESAMPLES,
            batch=max(1, CELLS // sums.shape[1]),
            rng=np.random.default_rng(seed),
        )
    low, high = drawn.confidence_interval
    if not np.isfinite([low, high]).all():  # two or three clusters can leave nothing to correct by
        low, high = np.quantile(drawn.bootstrap_distribution, [0.025, 0.975])
    return float(low), float(high)


def _summed(columns: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    # [columns, rows] to [columns, clusters].
    whose = [("alone", i) if name is None else name for i, name in enumerate(clusters)]
    places = {name: i for i, name in enumerate(dict.fromkeys(whose))}
    cluster = [places[name] for name in whose]
    return np.array([np.bincount(cluster, column, len(places)) for column in columns])


# --- several policies on the same prompts ----------------------------------------------------------------------------


class Comparison(Record):
    """One policy against another on the same prompts, in percentage points."""

    policy: str
    baseline: str
    n: int
    points: float
    low: float
    high: float
    only_policy: int
    """Prompts with the outcome under the policy alone."""
    only_baseline: int
    p: float
    """Two-sided; exact McNemar, or with clusters a permutation test that swaps the policies in whole clusters."""
    corrected: float
    """`p` after Holm's correction for all policies compared with this baseline."""


def compare(
    outcomes: Mapping[str, Sequence[bool]],
    baseline: str,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Every other policy against the baseline: difference with its interval, p, and p corrected (Holm, 1979).

    The interval is Newcombe's for paired proportions (`paired_interval`); with `clusters` (one name a prompt: its goal,
    its pair) it is bootstrapped over clusters, of which there must be two for that.

    Raises:
        PromptError: the baseline is not among the policies, no other is, or they were not asked the same prompts.
    """
    if baseline not in outcomes or len(outcomes) < 2:
        raise PromptError(
            f"policies {', '.join(outcomes)} against {baseline}; give the baseline and at least one more."
        )
    b = outcomes[baseline]
    if clusters is not None and len(clusters) != len(b):
        raise PromptError(f"{len(clusters)} cluster names for {len(b)} prompts; give one for each.")
    if len({len(rows) for rows in outcomes.values()}) != 1:
        lengths = ", ".join(f"{name} {len(rows)}" for name, rows in outcomes.items())
        raise PromptError(f"outcomes of different numbers of prompts ({lengths}); compare policies on the same ones.")
    rest = [name for name in outcomes if name != baseline]
    ps = [
        paired(outcomes[name], b) if clusters is None else _swapped(outcomes[name], b, clusters, seed) for name in rest
    ]
    found = []
    for name, p, corrected in zip(rest, ps, holm(ps), strict=True):
        a = outcomes[name]
        only_a, only_b = (sum(bool(x) > bool(y) for x, y in zip(*both, strict=True)) for both in ((a, b), (b, a)))
        both_, neither = sum(map(bool, a)) - only_a, len(a) - sum(map(bool, a)) - only_b
        change = paired_interval(both_, only_a, only_b, neither)
        if clusters is not None:
            mean = Mean.of([100 * (int(x) - int(y)) for x, y in zip(a, b, strict=True)], clusters=clusters, seed=seed)
            if mean.low is not None and mean.high is not None:
                change = Difference(mean.mean, mean.low, mean.high)
        found.append(
            Comparison(
                policy=name,
                baseline=baseline,
                n=len(a),
                points=change.points,
                low=change.low,
                high=change.high,
                only_policy=only_a,
                only_baseline=only_b,
                p=p,
                corrected=corrected,
            )
        )
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of tests that are read together, corrected for their number (Holm, 1979)."""
    from statsmodels.stats.multitest import multipletests

    corrected: Any = multipletests(ps, method="holm")[1]
    return [min(1.0, float(p)) for p in corrected]


def paired_interval(both: int, only_a: int, only_b: int, neither: int) -> Difference:
    """Rate of `a` less rate of `b` on the same cases, which are given by who has the outcome, in percentage points.

    Newcombe (1998, Statistics in Medicine 17:2635-2650), method 10: Wilson's limits of the two rates, squared and
    added, less what the two have in common (the correlation phi, corrected for continuity). Recommended by Fagerland,
    Lydersen and Laake (2014). statsmodels has it from its next version on (`confint_proportions_paired`).
    """
    a, b = Rate.of(both + only_a, n := both + only_a + only_b + neither), Rate.of(both + only_b, n)
    common = both * neither - only_a * only_b
    margins = a.k * (n - a.k) * b.k * (n - b.k)
    phi = (max(common - n / 2, 0) if common > 0 else common) / sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return sqrt(x * x - 2 * phi * x * y + y * y)

    points = a.rate - b.rate
    low, high = reach(a.rate - a.low, b.high - b.rate), reach(a.high - a.rate, b.rate - b.low)
    return Difference(100 * points, 100 * (points - low), 100 * (points + high))


def _swapped(a: Sequence[bool], b: Sequence[bool], clusters: Sequence[Hashable], seed: int) -> float:
    # Were the two policies one, each cluster's outcomes might as well have been the other's. Exact for few clusters.
    from scipy.stats import permutation_test

    sums = _summed(np.array([a, b], dtype=float), clusters)
    if (sums[0] == sums[1]).all():
        return 1.0
    test = permutation_test(
        tuple(sums),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10 * RESAMPLES,
        batch=max(1, CELLS // sums.shape[1]),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The policies that no other beats, fewest benign refusals first.

    Each is (share of harmful refused, share of benign refused). One beats another if it is as good at both and better
    at one; of two that are equal at both, neither beats the other, so both are named.
    """

    def beaten(harmful: float, benign: float) -> bool:
        return any(h >= harmful and b <= benign and (h, b) != (harmful, benign) for h, b in points.values())

    front = [name for name, at in points.items() if not beaten(*at)]
    return sorted(front, key=lambda name: (points[name][1], points[name][0]))


class DoseResponse(Record):
    """A family of policies that differ in dose, in order of dose."""

    doses: tuple[float, ...]
    rates: tuple[Rate, ...]
    spearman: float | None
    """Rank correlation of dose and rate: 1 where more is always more. None where there are no two doses or rates."""
    ed50: float | None
    """The dose at which half respond, on the line between the doses around it; None where half never do."""

    @classmethod
    def of(cls, rates: Mapping[float, Rate]) -> Self:
        """From the rate at each dose.

        `ed50` is where the rate first reaches one half from below: past it an overdose may break the model, and the
        rate fall again.

        Raises:
            PromptError: no dose.
        """
        from scipy.stats import spearmanr

        if not rates:
            raise PromptError("a dose-response curve without a dose; give the rate of at least one.")
        doses = sorted(rates)
        shares = [rates[d].rate for d in doses]
        ranks: Any = spearmanr(doses, shares) if len(set(shares)) > 1 else None
        return cls(
            doses=tuple(doses),
            rates=tuple(rates[d] for d in doses),
            spearman=None if ranks is None else float(ranks.statistic),
            ed50=_half(doses, shares),
        )


def _half(doses: Sequence[float], shares: Sequence[float]) -> float | None:
    if shares[0] == 0.5:
        return doses[0]
    for (d0, s0), (d1, s1) in pairwise(zip(doses, shares, strict=True)):
        if s0 < 0.5 <= s1:
            return d0 + (0.5 - s0) / (s1 - s0) * (d1 - d0)
    return None


# --- how well a score tells two kinds apart --------------------------------------------------------------------------


def areas(
    scores: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]], seed: int = 0
) -> tuple[list[Area], Area]:
    """The area of each pair of sources, in order, and the mean of them, with percentile bootstrap intervals.

    `scores` has, by (harmful source, benign source), the scores of the harmful source's rows and of the benign one's.
    Rows are drawn within their source, the same rows in every pair that it is part of, so that the mean's interval
    knows what its pairs share. An area of exactly 1 gets an interval of no width: read its n.

    Raises:
        PromptError: no pair, or one without rows of either kind.
    """
    if not scores or not all(len(h) and len(b) for h, b in scores.values()):
        raise PromptError("areas need at least one pair of sources, with rows on both sides.")
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[str, int], Any] = {}
    found, spread = [], []
    for names, (h, b) in scores.items():
        sides = [np.asarray(side, dtype=float) for side in (h, b)]
        for label, (name, side) in enumerate(zip(names, sides, strict=True)):
            if (name, label) not in drawn:
                drawn[name, label] = rng.multinomial(len(side), [1 / len(side)] * len(side), RESAMPLES)
        above = (sides[0][:, None] > sides[1]) + 0.5 * (sides[0][:, None] == sides[1])
        cells = above.size
        spread.append(((drawn[names[0], 0] @ above) * drawn[names[1], 1]).sum(1) / cells)
        found.append(_area(float(above.mean()), spread[-1], len(h), len(b)))
    rows = [sum(d.shape[1] for (_, label), d in drawn.items() if label == side) for side in (0, 1)]
    return found, _area(sum(a.area for a in found) / len(found), np.mean(spread, axis=0), *rows)


def _area(area: float, drawn: Any, harmful: int, benign: int) -> Area:
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Area(area=area, low=low, high=high, harmful=harmful, benign=benign)
