"""Rates with their intervals, and what may be said of two of them.

All intervals are at 95 %. statsmodels takes a second to import, so each function imports it when called.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from pydantic import Field

from demur.errors import PromptError
from demur.records import Record


class Rate(Record):
    """A share of `n` cases with its Wilson interval; shares of 1, printed in percent."""

    k: int = Field(ge=0)
    n: int = Field(ge=1)
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, k: int, n: int) -> Self:
        """The rate of `k` cases in `n` (Wilson, 1927).

        Raises:
            PromptError: no case at all, or a count that does not lie between 0 and `n`.
        """
        from statsmodels.stats.proportion import proportion_confint

        if n == 0:
            raise PromptError("a rate of no cases; give at least one row.")
        if not 0 <= k <= n:
            raise PromptError(f"{k} of {n} cases; expected a count from 0 to {n}.")
        interval: Any = proportion_confint(k, n, method="wilson")
        return cls(k=k, n=n, rate=k / n, low=float(interval[0]), high=float(interval[1]))

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"


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
