"""Style is not harm: what reads harm is fitted without a source of prompts and measured on it.

A data set of harmful prompts has a style, and one of harmless prompts another, so whatever tells the two sets apart
scores well on them. A source that is left out is often of one label only (AdvBench is all harmful), and its rows need
rows of the other label to be told from. So one harmful source and one benign source are left out together, both with
all their rows, and the area under the ROC curve is that of the first one's harmful rows against the second one's
benign rows; all such pairs are measured. The styles of both are then new, and one cannot be known by what it is not.
Where a source has both labels it is paired with itself too, which is the hardest test: the style is the same.

Beside each figure stands that of the same rows with both sources among those fitted to (five folds: rows of the same
source, but not these). The difference is what style was worth.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from demur.errors import PromptError
from demur.evaluation.statistics import areas
from demur.features.sensors import fit
from demur.progress import bar
from demur.records import HeldOut, HeldOutPair

FOLDS = 5


class Reader(Protocol):
    """What a fit gives: a `sensors.Reading`, or another that scores prompts."""

    def scores(self, pooled: Float[Tensor, "prompts width"]) -> Float[Tensor, " prompts"]:
        """Log-odds of harm."""
        ...


Fit = Callable[[Tensor, Sequence[bool], Sequence[str]], Reader]
"""From pooled activations, labels and groups to what reads harm, as `sensors.fit` with its count."""


def held_out(
    reader: str,
    fit_on: Fit,
    pooled: Float[Tensor, "prompts width"],
    harmful: Sequence[bool],
    sources: Sequence[str],
    groups: Sequence[str],
    seed: int = 0,
) -> HeldOut:
    """Areas of every pair of a harmful and a benign source that a reading was not fitted to.

    Args:
        reader: What to call it.
        fit_on: Chooses and weights columns of `pooled`; sees nothing of what is left out.
        pooled: Activations on each prompt.
        harmful: Its label.
        sources: Where it comes from; what is left out is left out whole.
        groups: As `fit_on` takes them.
        seed: Of the intervals.

    Raises:
        PromptError: without any pair of sources, only one label would be left.
    """
    rows = list(zip(harmful, sources, strict=True))
    possible, rest = pairs(rows)
    seen: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    unseen = dict(seen)
    with bar(f"leaving out sources: {reader}", len(possible) + FOLDS) as progress:
        scores = torch.zeros(len(rows))
        for out in _folds(rows):
            scores[out] = _scores(fit_on, pooled, harmful, groups, out)
            progress.step()
        for pair in possible:
            away = [s in pair for _, s in rows]
            fresh = torch.zeros(len(rows))
            fresh[away] = _scores(fit_on, pooled, harmful, groups, away)
            for found, values in ((seen, scores), (unseen, fresh)):
                found[pair] = (
                    values[[row == (True, pair[0]) for row in rows]].tolist(),
                    values[[row == (False, pair[1]) for row in rows]].tolist(),
                )
            progress.step()
    (one, mean), (before, mean_before) = areas(unseen, seed), areas(seen, seed)
    return HeldOut(
        reader=reader,
        pairs=tuple(
            HeldOutPair(harmful=h, benign=b, unseen=u, seen=s)
            for (h, b), u, s in zip(possible, one, before, strict=True)
        ),
        unseen=mean,
        seen=mean_before,
        not_measured=tuple(rest),
    )


def beside_a_probe(
    pooled: Float[Tensor, "prompts d_sae"],
    stream: Float[Tensor, "prompts d_model"],
    harmful: Sequence[bool],
    sources: Sequence[str],
    groups: Sequence[str],
    count: int,
    seed: int = 0,
) -> tuple[HeldOut, HeldOut]:
    """A gate of `count` features, and a probe of every dimension of the stream: what sparsity costs.

    Raises:
        PromptError: without any pair of sources, only one label would be left.
    """
    probe = partial(fit, count=stream.shape[1])
    return (
        held_out(f"{count} sensors", partial(fit, count=count), pooled, harmful, sources, groups, seed),
        # Centred for the solver's sake; the intercept is free, so the model is the same.
        held_out("dense probe", probe, stream - stream.mean(0), harmful, sources, groups, seed),
    )


def pairs(rows: Sequence[tuple[bool, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Of rows of (harmful, source): the pairs that can be left out, and those without which one label only is left.

    Raises:
        PromptError: there are none of the former.
    """
    bad, good = (list(dict.fromkeys(s for h, s in rows if h is label)) for label in (True, False))
    every = list(product(bad, good))
    possible = [pair for pair in every if len({h for h, s in rows if s not in pair}) == 2]
    if not possible:
        raise PromptError(
            f"harmful prompts of {len(bad)} and benign ones of {len(good)} sources; leaving out one of each must leave "
            "prompts of both labels: give at least two sources (column `source`) for each."
        )
    return possible, [pair for pair in every if pair not in possible]


def _scores(fit_on: Fit, pooled: Tensor, harmful: Sequence[bool], groups: Sequence[str], out: Sequence[bool]) -> Tensor:
    # Log-odds on what is left out, by a reading of the rest.
    stay = [i for i, away in enumerate(out) if not away]
    reading = fit_on(pooled[stay], [harmful[i] for i in stay], [groups[i] for i in stay])
    return reading.scores(pooled[list(out)])


def _folds(rows: Sequence[tuple[bool, str]]) -> list[list[bool]]:
    # Every fifth row of each source and label, so that each fold is made up as the whole is.
    places: dict[tuple[bool, str], int] = {}
    folds = []
    for row in rows:
        folds.append(places.setdefault(row, 0) % FOLDS)
        places[row] += 1
    return [[f == fold for f in folds] for fold in range(FOLDS) if fold in folds]
