"""A minimal set: features are taken out one by one for as long as the model goes on refusing, and what is left is
looked at for pairs that only work together, and for others that would take over.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch

from demur.features.branches import Branches
from demur.features.effect import Bench, Conversation, Tried, try_policies
from demur.features.optimise import MARGIN
from demur.features.signals import attribution
from demur.records import Dormant, Interaction, Prompt, Record, Removal

PAIRED = 6
"""Features whose pairs are looked at."""
AT_A_TIME = 4
"""Sets tried in one go; where none of them will do, smaller ones are not tried."""
SHOWN = 8
"""Dormant features that are reported."""
GAIN = 0.1
"""Least gain, in nats, at which a feature is said to take over."""


class Pruned(Record):
    """What is left of a set of features, and how it came to that."""

    amounts: dict[int, float]
    """The feature that can least be done without first."""
    path: tuple[Removal, ...]
    whole: float
    """Share of the harmful prompts refused under the whole set."""


def prune(
    bench: Bench,
    branches: Branches,
    amounts: Mapping[int, float],
    scored: Sequence[Conversation],
    tried: Sequence[Prompt],
    beginnings: Sequence[Sequence[int]],
    slack: float,
) -> Pruned:
    """The smallest of the sets that backward elimination goes through which refuses nearly as much as the whole.

    At each step that feature goes without which the odds of a refusal are best; of two that do the same one goes, and
    the other is needed from then on. The odds order the features only: the sets are then tried by generating, the larger
    first, without the amounts' margin, and the smallest is taken that loses at most `slack` of the prompts, broken replies
    counting as lost.
    """
    order = _eliminated(branches, amounts, scored, beginnings)
    sets = [dict(amounts)]
    for feature, _ in order:
        sets.append({f: v for f, v in sets[-1].items() if f != feature})
    found: list[Tried] = []
    last = 0
    for start in range(0, len(sets), AT_A_TIME):
        some = sets[start : start + AT_A_TIME]
        group = [bench.raising({f: v / MARGIN for f, v in values.items()}, "reply") for values in some]
        found += try_policies(bench, group, tried, [], what=f"pruning to {len(sets[start])} features and fewer")
        worth = [t.refused - t.degenerate for t in found]
        last = max(i for i, w in enumerate(worth) if w >= worth[0] - slack)
        if last < start:
            break
    path = tuple(
        Removal(
            feature=feature,
            left=len(sets[i]),
            log_odds=odds,
            refused=t.refused,
            degenerate=t.degenerate,
            gone=i <= last,
        )
        for i, ((feature, odds), t) in enumerate(zip(order, found[1:], strict=False), 1)
    )
    gone = [feature for feature, _ in order]
    # The order in which they would have gone, turned round: each beginning of it is one of the sets gone through.
    left = [*(f for f in amounts if f not in gone), *reversed(gone[last:])]
    return Pruned(amounts={f: amounts[f] for f in left}, path=path, whole=found[0].refused)


def _eliminated(
    branches: Branches,
    amounts: Mapping[int, float],
    conversations: Sequence[Conversation],
    beginnings: Sequence[Sequence[int]],
) -> list[tuple[int, float]]:
    # The features in the order in which they go, all but the last, with the odds under those then left.
    left, order = dict(amounts), []
    while len(left) > 1:
        without = [{f: v for f, v in left.items() if f != gone} for gone in left]
        odds = branches.refusal_log_odds(
            without, conversations, beginnings, f"leaving out one of {len(left)} features"
        ).mean(1)
        at = int(odds.argmax())
        order.append((list(left)[at], float(odds[at])))
        left = without[at]
    return order


def interactions(
    branches: Branches,
    amounts: Mapping[int, float],
    conversations: Sequence[Conversation],
    beginnings: Sequence[Sequence[int]],
) -> list[Interaction]:
    """Of each pair of the first features: what both raised do beyond the sum of each, the strongest surplus first."""
    some = list(amounts)[:PAIRED]
    pairs = list(itertools.combinations(some, 2))
    trials = [{}, *({f: amounts[f]} for f in some), *({a: amounts[a], b: amounts[b]} for a, b in pairs)]
    odds = branches.refusal_log_odds(trials, conversations, beginnings, "looking for interactions").mean(1)
    gains = (odds - odds[0]).tolist()
    alone = dict(zip(some, gains[1 : 1 + len(some)], strict=True))
    found = [
        Interaction(features=pair, together=both, apart=alone[pair[0]] + alone[pair[1]])
        for pair, both in zip(pairs, gains[1 + len(some) :], strict=True)
    ]
    return sorted(found, key=lambda i: -abs(i.surplus))


def dormant(
    branches: Branches,
    chosen: Sequence[int],
    conversations: Sequence[Conversation],
    beginnings: Sequence[Sequence[int]],
    levels: Mapping[int, float],
) -> list[Dormant]:
    """Features that gain most when the chosen ones are ablated, by attribution with and without them.

    A model whose refusal is carried twice goes on refusing when one carrier is taken away.
    """
    wide = torch.zeros(branches.bench.sae.config.d_sae)
    for feature, level in levels.items():
        if feature not in chosen:
            wide[feature] = level
    ablated = dict.fromkeys(chosen, 0.0)
    before, after = (
        attribution(branches, conversations, beginnings, wide, held, what)
        for held, what in (({}, "attributing once more"), (ablated, "attributing without the chosen features"))
    )
    known = wide > 0
    gain = torch.where(known, after - before, torch.zeros(()))
    return [
        Dormant(feature=f, before=float(before[f]), after=float(after[f]))
        for f in gain.argsort(descending=True, stable=True)[:SHOWN].tolist()
        if gain[f] >= GAIN
    ]
