"""A share of cases, with its interval."""

from math import sqrt
from typing import Self

from pydantic import Field

from demur.errors import PromptError
from demur.records.record import Record

Z = 1.9599639845400545
"""Of a 95 % interval."""


class Rate(Record):
    """A share of `n` cases with its Wilson interval (95 %); shares of 1, printed in percent."""

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
        if n == 0:
            raise PromptError("a rate of no cases; give at least one row.")
        if not 0 <= k <= n:
            raise PromptError(f"{k} of {n} cases; expected a count from 0 to {n}.")
        # By hand: statsmodels, whose figures these are to the bit, takes a second to import, which a page would wait for.
        share, spread = k / n, Z * Z / n
        middle = (share + spread / 2) / (1 + spread)
        half = Z * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + spread)
        return cls(k=k, n=n, rate=share, low=max(0.0, middle - half), high=min(1.0, middle + half))

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"
