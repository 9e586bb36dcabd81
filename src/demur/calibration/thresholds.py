"""A gate's threshold: the lowest that keeps to a stated false-refusal budget in every stratum of benign prompts."""

import math
from collections.abc import Mapping, Sequence

from demur.errors import PromptError, SettingsError
from demur.records import Record

MARGIN = 1e-4
"""How far above a score the threshold is set, as a share of it (of 1, for a small one). Scores are sums in float32, whose
last digits depend on their order; a hair's breadth would open the gate for the very prompt it was to keep out."""


class Promise(Record):
    """What one stratum of validation prompts promises of new prompts of its kind, at its own threshold or any higher."""

    n: int
    """Validation prompts."""
    budget: float
    """Share of such prompts that may open the gate."""
    rank: int
    """The threshold lies just above the score of this place, from the lowest."""
    threshold: float
    kept: bool
    """Whether n is enough for the budget; where it is not, the threshold is above the highest score."""
    share: float
    """A new prompt, exchangeable with these, opens the gate with at most this probability, over draws of both:
    `(n + 1 − rank) / (n + 1)`."""
    surely: float
    """With these very prompts drawn, the share of new ones that open it is at most this, in 95 % of such draws."""

    def __str__(self) -> str:
        if not self.kept:
            return (
                f"{self.n} prompts are too few for {100 * self.budget:g} % (it takes {least(self.budget)}): above all of "
                f"them, which keeps {100 * self.share:.2g} %"
            )
        return (
            f"at most {100 * self.share:.2g} % (n = {self.n}); in 95 % of such draws at most {100 * self.surely:.2g} %"
        )


def least(budget: float) -> int:
    """The fewest scores from which a threshold can keep a budget."""
    return math.ceil(round(1 / budget, 9)) - 1


def conformal_rank(n: int, budget: float) -> int:
    """Place, from the lowest, of the score above which a new one lies with probability at most `budget`.

    `⌈(n + 1)(1 − budget)⌉`: the split-conformal quantile (Vovk et al. 2005; Angelopoulos & Bates, arXiv 2107.07511). Above
    `n` where there are too few.
    """
    # Rounded before, since (n + 1)(1 − budget) may be a whole number but for its last digit.
    return math.ceil(round((n + 1) * (1 - budget), 9))


def conformal_threshold(scores: Sequence[float], budget: float) -> float:
    """The threshold that a new prompt of the same kind reaches with probability at most `budget`.

    Just above the score of `conformal_rank`. With too few scores for the budget it is infinite: the gate stays shut.

    Raises:
        PromptError: no scores.
    """
    if not scores:
        raise PromptError("no validation prompts for a stratum; a threshold needs some.")
    rank = conformal_rank(len(scores), budget)
    return math.inf if rank > len(scores) else just_above(sorted(scores)[rank - 1])


def promise(scores: Sequence[float], budget: float) -> Promise:
    """What a stratum's scores promise; one too small for its budget takes its highest score, as the best it can say.

    The share that opens, given the scores, is distributed as Beta(n + 1 − rank, rank) or lies below it, where scores are
    drawn alike and have no ties (Vovk 2012, arXiv 1209.2673).

    Raises:
        PromptError: no scores.
    """
    from scipy.stats import beta

    exact, n = conformal_threshold(scores, budget), len(scores)
    rank = min(n, conformal_rank(n, budget))
    return Promise(
        n=n,
        budget=budget,
        rank=rank,
        threshold=exact if math.isfinite(exact) else just_above(max(scores)),
        kept=math.isfinite(exact),
        share=(n + 1 - rank) / (n + 1),
        surely=float(beta.ppf(0.95, n + 1 - rank, rank)),
    )


def just_above(score: float) -> float:
    """A threshold that a score does not reach, however it is summed."""
    return score + MARGIN * max(1.0, abs(score))


def threshold(scores: Mapping[str, Sequence[float]], budgets: Mapping[str, float]) -> tuple[str, dict[str, Promise]]:
    """The stratum whose threshold is the highest, which is the gate's, and what each promises.

    Whoever keeps to the highest keeps to all: a score that does not reach a threshold reaches no higher one.

    Raises:
        SettingsError: a stratum without a budget.
        PromptError: a stratum without scores.
    """
    each = {}
    for stratum, found in scores.items():
        if stratum not in budgets:
            raise SettingsError(
                f"no false-refusal budget for {stratum!r} prompts; budgets are for {', '.join(budgets)}."
            )
        each[stratum] = promise(found, budgets[stratum])
    return max(each, key=lambda s: each[s].threshold), each
