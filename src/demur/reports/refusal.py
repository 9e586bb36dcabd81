"""Who refuses what: all policies at a glance, against the plain model, by set, by kind, and what became of the rest."""

from collections.abc import Sequence

from demur.evaluation.statistics import Comparison, Rate
from demur.records import LIKE_HARM, Label
from demur.reports import plots
from demur.reports.blocks import (
    Cell,
    Drawing,
    Drawings,
    Figure,
    Section,
    Table,
    count,
    folded,
    grid,
    n_of,
    of_points,
    of_policy,
    of_rate,
    of_rate_short,
    word,
)
from demur.reports.capability import baseline, mean_change
from demur.reports.plots import OUTCOMES
from demur.reports.study import CEILING, PLAIN, Group, Study, first
from demur.reports.svg import draw
from demur.reports.words import p_value, percent, readable

MOST_CATEGORIES = 40
"""Rows of a table of kinds; the taxonomy has 28 kinds of harm."""


# --- at a glance -----------------------------------------------------------------------------------------------------


def hero(study: Study) -> Drawing | None:
    """The trade-off."""
    chart = plots.trade_off(study)
    if chart is None:
        return None
    note = (
        "Up and to the left is better: harmful requests refused, benign ones answered. Bars are 95 % intervals. On the "
        "dotted line a policy refuses without telling one from the other."
    )
    if len(study.front) > 1:
        note += " The green line joins the policies that no other beats at both."
    if CEILING in study.both:
        note += f" {CEILING}, hollow, is what its gate allows, not a rival."
    if study.families:
        note += " Thin lines join the doses of one policy."
    return Drawing(
        draw(chart, "Benign against harmful requests refused, by policy; the table has the figures."), "", note
    )


def glance(study: Study) -> Section:
    """All policies, one line each."""
    labels, twins = study.labels, bool(study.pairs)
    changes = {p: mean_change(study, p) for p in study.policies}
    head = [word("policy"), *(word(f"{label} refused", _n(study, label)) for label in labels)]
    head += [word("twins told apart", f"{len(study.pairs)} pairs")] if twins else []
    head += [word("broken text")] if labels else []
    head += [word("capability", "points against the plain model")] if any(changes.values()) else []
    head += [word(f"acted on {label}") for label in labels]
    rows = []
    for p in study.policies:
        row = [of_policy(p, _role(study, p)), *(of_rate(study.total(p, label), label) for label in labels)]
        row += [of_rate(study.told_apart(p))] if twins else []
        row += [of_rate(study.broken(p))] if labels else []
        if any(changes.values()):
            change = changes[p]
            row.append(of_points(*change) if change else baseline(p))
        row += [_acted(study.acted(p, label)) for label in labels]
        rows.append(row)
    about = "All sets and kinds together; the policy with the widest gap between the two rates comes first."
    if twins:
        about += (
            f" Twins told apart: of {len(study.pairs)} harmful requests with a benign twin, how often the one was "
            "refused and the other was not."
        )
    about += " Broken text: empty, looping or no language. Acted: how often the policy changed the computation at all."
    table = Table("glance", "Share refused, with its 95 % interval in percent.", head, rows)
    return Section("glance", "All policies", about, [table])


def _acted(rate: Rate | None) -> Cell:
    return Cell(percent(rate.rate), figure=Figure(rate.rate, rate.low, rate.high, rate.n)) if rate else Cell()


def _role(study: Study, policy: str) -> str:
    if policy == PLAIN:
        return "the plain model"
    if policy == CEILING:
        return "ceiling of its gate"
    return "on the front" if policy in study.front and len(study.policies) > 2 else ""


def _n(study: Study, label: str) -> str:
    return n_of([r for p in study.policies if (r := study.total(p, label))])


# --- against the plain model -----------------------------------------------------------------------------------------


def against_plain(study: Study) -> Section | None:
    """Every policy against the plain model, prompt by prompt; None where it was not asked."""
    labels = [label for label in study.labels if study.comparisons.get(label)]
    if not labels:
        return None
    by = {(label, c.policy): c for label in labels for c in study.comparisons[label]}
    head = [word("policy")]
    for label in labels:
        n = study.comparisons[label][0].n
        head += [word(f"{label}: points", f"n = {n}"), word(f"{label}: only it / only plain"), word(f"{label}: p")]
    rows = [
        [of_policy(p), *(cell for label in labels for cell in _compared(by.get((label, p))))]
        for p in study.policies
        if p != PLAIN
    ]
    about = (
        "Refused under the policy less refused by the plain model, in points, on the same prompts. Only it / only "
        "plain: prompts that one of the two refuses. p: exact McNemar test - where prompts share a goal or a pair, a "
        "permutation test on those - after Holm's correction for all policies in the column."
    )
    table = Table("against-plain", "Change in the share refused, with its 95 % interval.", head, rows)
    return Section("plain", "Against the plain model", about, [table])


def _compared(c: Comparison | None) -> list[Cell]:
    if c is None:
        return [Cell(), Cell(), Cell()]
    return [
        of_points(c.points, c.low, c.high, c.n),
        word(f"{c.only_policy} / {c.only_baseline}"),
        Cell(p_value(c.corrected), figure=Figure(c.corrected, n=c.n)),
    ]


# --- by set and by kind ----------------------------------------------------------------------------------------------


def by_set(study: Study) -> Section:
    """Every set and kind."""
    columns: list[tuple[Cell, Label | str, dict[str, Rate | None]]] = []
    for label in study.labels:
        groups = [g for g in study.groups if g[1] == label]
        for g in groups:
            rates = {p: r.refused for p, r in study.cells(g).items()}
            columns.append((_group_cell(study, g, rates), label, rates))
        if len(groups) > 1:
            totals = {p: study.total(p, label) for p in study.policies}
            columns.append((word(f"all {label}", _n(study, label)), label, totals))
    table = grid(
        "sets",
        "Share refused, with its 95 % interval in percent.",
        ("policy", "set and kind"),
        [of_policy(p) for p in study.policies],
        [cell for cell, _, _ in columns],
        lambda i, j: of_rate(columns[j][2].get(study.policies[i]), columns[j][1]),
    )
    about = "Of harmful requests the more the better, of benign ones the fewer."
    return Section("sets", "Refused, by set", about, [table], "By set")


def _group_cell(study: Study, group: Group, rates: dict[str, Rate | None]) -> Cell:
    name, label, kind = group
    ns = n_of([r for r in rates.values() if r])
    what = readable(kind or label)
    if len(study.sets) == 1:
        return word(what, ", ".join([*([label] if what != label else []), ns]))
    alone = sum(g[0] == name for g in study.groups) == 1
    return word(name if alone else f"{name}: {what}", f"{what if alone else label}, {ns}")


GROUPS: dict[str, tuple[str, Label]] = {
    "harm": ("Harmful requests, by kind of harm", "harmful"),
    "lookalike": ("Look-alikes, by kind", "benign"),
    "offensive": ("Merely offensive, by kind", "benign"),
    "topic": ("Everyday requests, by topic", "benign"),
}
"""Title and label of the four tables; the topics are whatever is benign and neither of the two before."""


def by_category(study: Study) -> Section | None:
    """By kind of harm and of look-alike; None where no prompt says."""
    parts = [table for name in GROUPS if (table := _categories(study, name))]
    if not parts:
        return None
    about = (
        f"In whole percents, with 95 % intervals. In each table, where {study.best} does worst comes first. Kinds are "
        "those of the taxonomy where the set is known by name, else the set's own."
    )
    return Section("kinds", "Refused, by kind of harm and of look-alike", about, parts, "By kind")


def _categories(study: Study, name: str) -> Table | None:
    title, label = GROUPS[name]
    found: dict[str, dict[str, list[bool]]] = {}
    for case in study.cases:
        t = first(case)
        if t.category and t.label == label and _of_group(t.label, t.kind) == name:
            of = found.setdefault(t.category, {})
            for p, a in case.items():
                if a.judged:
                    of.setdefault(p, []).append(a.refused)
    rates = {c: {p: Rate.of(sum(hits), len(hits)) for p, hits in of.items()} for c, of in found.items() if of}
    if not rates:
        return None
    sizes = {c: max(r.n for r in of.values()) for c, of in rates.items()}
    kept = sorted(rates, key=lambda c: -sizes[c])[:MOST_CATEGORIES]
    sign = 1 if label == "harmful" else -1
    kept.sort(key=lambda c: (sign * rates[c][study.best].rate if study.best in rates[c] else 2.0, c))
    left = len(rates) - len(kept)
    return grid(
        f"kinds-{name}",
        f"{title}: share refused, in percent.{f' {left} smaller ones are left out.' if left else ''}",
        ("policy", "kind"),
        [of_policy(p) for p in study.policies],
        [word(readable(c), f"n = {sizes[c]}") for c in kept],
        lambda i, j: of_rate_short(rates[kept[j]].get(study.policies[i]), label),
        compact=True,
    )


def _of_group(label: str, kind: str | None) -> str:
    if label == "harmful":
        return "harm"
    return kind if kind in LIKE_HARM else "topic"


# --- what became of the requests -------------------------------------------------------------------------------------


def outcomes(study: Study) -> Section | None:
    """Every outcome, not refusal alone; None where nothing was judged."""
    labels = [label for label in study.labels if any(study.outcomes(p, label) for p in study.policies)]
    if not labels:
        return None
    drawings = [
        Drawing(
            draw(plots.outcomes(study, label), f"Outcomes of {label} requests by policy."), label, "percent of replies"
        )
        for label in labels
    ]
    unjudged = any(r.unjudged for r in study.results)
    head = ["policy", "label", *OUTCOMES, *(["not judged"] if unjudged else [])]
    rows: list[Sequence[Cell]] = []
    for label in labels:
        for p in (p for p in study.policies if study.of(p, label)):
            counts = study.outcomes(p, label)
            row = [of_policy(p), word(label), *(count(counts[o]) for o in OUTCOMES)]
            rows.append([*row, count(sum(r.unjudged for r in study.of(p, label)))] if unjudged else row)
    table = Table("outcomes", "Replies by outcome.", [word(h) for h in head], rows, 2)
    about = (
        "Partial: declines and helps all the same. Deflected: neither. Degenerate: empty, looping or not language. "
        "Only “refused” counts as refused."
    )
    swatches = [(o, f"var(--{o})") for o in OUTCOMES]
    parts = [Drawings(drawings, swatches), folded(table, "The counts as a table")]
    return Section("outcomes", "What became of the requests", about, parts, "Outcomes")
