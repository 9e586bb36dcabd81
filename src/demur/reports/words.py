"""Numbers and names as the report prints them, and its first sentence."""

import re
from collections.abc import Sequence

from demur.evaluation.statistics import Rate
from demur.reports.study import PLAIN, Study

HEADLINE = 4
"""Policies that one sentence can carry."""
# Not printable, and not allowed in SVG: a reply or a name may hold anything.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def clean(text: str) -> str:
    """Text with control characters made visible."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def percent(share: float) -> str:
    """A share of 1 in percent, to one decimal."""
    return f"{100 * share:.1f} %"


def interval(rate: Rate) -> str:
    """The 95 % interval in percent."""
    return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def readable(name: str | None) -> str:
    """A kind or a category in words."""
    return "look-alikes" if name == "lookalike" else clean(name or "–").replace("_", " ")


def group_name(study: Study, group: tuple[str, str, str | None]) -> str:
    """A row of the table in a few words: the kind, after the set's name where there are several sets."""
    name, label, kind = group
    what = readable(kind or label)
    return what if len(study.sets) == 1 else f"{clean(name)}: {what}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def headline(study: Study) -> str:
    """What was measured, in one sentence."""
    names = study.policies
    if len(names) > HEADLINE:
        # The plain model is last; a reader needs it to see what steering did.
        names = [*sorted(names[:-1], key=study.gap, reverse=True)[: HEADLINE - 1], names[-1]]
    parts = []
    for i, name in enumerate(names):
        rates = {label: rate for label in study.labels if (rate := study.total(name, label))}
        called = "the plain model" if name == PLAIN else clean(name)
        if i and len(rates) == len(study.labels):
            parts.append(f"{called} {listed([percent(r.rate) for r in rates.values()])}")
        else:
            shares = [f"{percent(rate.rate)} of the {label}" for label, rate in rates.items()]
            parts.append(f"{called} refuses {listed(shares)} requests")
    left = len(study.policies) - len(names)
    sentence = "; ".join(parts) + (f" ({left} more below)." if left else ".")
    return sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence
