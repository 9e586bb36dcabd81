"""What to take home, found by rule: the first sentence, and a few points, each with the section that it is from."""

from demur.evaluation.attacks.success import ALL
from demur.evaluation.statistics import Rate
from demur.reports.blocks import Point
from demur.reports.capability import mean_change, worse
from demur.reports.checks import worse_words
from demur.reports.controls import gap_to
from demur.reports.study import CEILING, PLAIN, Group, Study
from demur.reports.words import capital, clean, interval, listed, p_value, percent, points, readable, spread

HEADLINE = 4
"""Policies that one sentence can carry."""


def headline(study: Study) -> str:
    """What was measured, in one sentence."""
    if not study.results:
        return f"Capability under {listed([clean(p) for p in study.policies])}; no prompts were asked."
    names = study.policies
    if len(names) > HEADLINE:
        # The plain model is last; a reader needs it to see what steering did. A ceiling is not what is shown off.
        rivals = [p for p in names[:-1] if p != CEILING]
        names = [*rivals[: HEADLINE - 1], names[-1]]
    parts = []
    for i, name in enumerate(names):
        rates = {label: rate for label in study.labels if (rate := study.total(name, label))}
        called = "the plain model" if name == PLAIN else clean(name)
        if not rates:
            parts.append(f"{called} was not judged")
        elif i and len(rates) == len(study.labels):
            parts.append(f"{called} {listed([percent(r.rate) for r in rates.values()])}")
        else:
            shares = [f"{percent(rate.rate)} of the {label}" for label, rate in rates.items()]
            parts.append(f"{called} refuses {listed(shares)} requests")
    left = len(study.policies) - len(names)
    return capital("; ".join(parts) + (f" ({left} more below)." if left else "."))


def take_home(study: Study) -> list[Point]:
    """At most seven points."""
    found = [
        _steering(study),
        _attacked(study),
        _weak(study),
        _ceiling(study),
        _able(study),
        _words(study),
        _judges(study),
    ]
    return [p for p in found if p]


def _steering(study: Study) -> Point | None:
    by = {label: c for label, cs in study.comparisons.items() for c in cs if c.policy == study.best}
    if not by:
        return None
    parts = [
        f"{abs(c.points):.1f} points {'more' if c.points >= 0 else 'fewer'} of the {label} requests "
        f"{spread(c.low, c.high)}, p {_p(c.corrected)}"
        for label, c in by.items()
    ]
    return Point("Steering", "plain", f"against the plain model, {clean(study.best)} refuses {'; '.join(parts)}.")


def _p(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def _attacked(study: Study) -> Point | None:
    mine = [r for r in study.attacks if r.policy == study.best and r.cut and not r.control]
    several = {r.attack for r in mine if r.family == ALL}
    mine = [r for r in mine if r.family == ALL or r.attack not in several]
    parts = [f"{100 * r.cut.share:.0f} % of what {clean(r.attack)} wins (n = {r.n})" for r in mine if r.cut]
    if not parts:
        return None
    return Point(
        "Attacks", "attacks", f"from the plain model's losses, {clean(study.best)} takes back {listed(parts)}."
    )


def _weak(study: Study) -> Point | None:
    """Where the best policy refuses least of what is harmful, and most of what is not."""
    mine = {g: study.cells(g).get(study.best) for g in study.groups}
    rates: dict[Group, Rate] = {g: r.refused for g, r in mine.items() if r and r.refused}
    parts = []
    for label, pick, only in (("harmful", min, "only "), ("benign", max, "")):
        groups = [g for g in rates if g[1] == label]
        if len(groups) > 1:
            g = pick(groups, key=lambda g: rates[g].rate)
            parts.append(f"{only}{percent(rates[g].rate)} {interval(rates[g])} of {_name(g)}")
    return Point("Weakest", "sets", f"{clean(study.best)} refuses {listed(parts)}.") if parts else None


def _name(group: Group) -> str:
    name, label, kind = group
    return clean(name) if kind in (None, label) else f"{clean(name)} ({readable(kind)})"


def _ceiling(study: Study) -> Point | None:
    if CEILING not in study.policies or study.best not in study.same_gate(CEILING):
        return None
    both = {label: (study.total(CEILING, label), gap_to(study, study.best, CEILING, label)) for label in study.labels}
    parts = [
        f"{percent(rate.rate)} of the {label} requests ({clean(study.best)}: {points(gap.points)} points "
        f"{spread(gap.low, gap.high)})"
        for label, (rate, gap) in both.items()
        if rate and gap
    ]
    return Point("Ceiling", "gate", f"a canned reply behind the same gate refuses {listed(parts)}.") if parts else None


def _able(study: Study) -> Point | None:
    changes = {p: c for p in study.policies if p != PLAIN and (c := mean_change(study, p))}
    if not changes:
        return None
    tasks = len({r.task for r in study.capability})
    lost = min(changes, key=lambda p: changes[p].points)
    named = list(dict.fromkeys(p for p in (study.best, lost) if p in changes))
    parts = [f"{clean(p)} {points(changes[p].points)} points {spread(changes[p].low, changes[p].high)}" for p in named]
    bad = [r.task for r in study.capability if r.policy == study.best and r.change and worse(r.change)]
    text = f"{', '.join(parts)} against the plain model, mean of {tasks} task{'s' if tasks > 1 else ''}"
    if len(named) > 1:
        text += f" ({clean(lost)} loses most)"
    if bad:
        text += f"; {clean(study.best)} is worse on {listed([clean(t) for t in bad])}"
    return Point("Capability", "capability", f"{text}.")


def _words(study: Study) -> Point | None:
    broken = study.broken(study.best)
    if broken is None:
        return None
    text = f"{percent(broken.rate)} {interval(broken)} of {clean(study.best)}'s replies are broken text"
    plain = study.broken(PLAIN) if PLAIN in study.policies and study.best != PLAIN else None
    if plain:
        text += f" (the plain model's: {percent(plain.rate)})"
    bad = worse_words(study, study.best)
    if bad is None:
        return Point("Words", "outcomes", f"{text}.")
    return Point("Words", "quality", f"{text}; worse on benign prompts: {listed(bad) if bad else 'nothing'}.")


def _judges(study: Study) -> Point | None:
    parts = [
        f"{clean(a.judges[0])} and {clean(a.judges[1])} agree on {percent(a.agree.rate)} {interval(a.agree)}"
        for a in study.judges
        if a.policy == study.best
    ]
    return Point("Judges", "judges", f"{listed(parts)} of {clean(study.best)}'s replies.") if parts else None
