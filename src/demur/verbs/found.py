"""What `demur find` found of features beside their scores, as tables: meanings, candidates, pruning, interactions."""

from collections.abc import Sequence

from rich.table import Table

from demur.records import Dose, Feature, FeatureSet

SHOWN = 12
"""Rows of a table that goes on in the file."""
SCORES = ("rehearsal", "descent", "attribution", "contrast", "cosine", "paired", "output")
"""The signals."""
EFFECTS = {"gain (harmful / harmless)": ("log_odds_gain", "benign_log_odds_gain")}
EFFECTS |= {"refused (harmful / harmless)": ("harmful_refused", "benign_refused")}
"""What a candidate does alone, by column: on harmful and on harmless prompts."""


def found_tables(found: FeatureSet) -> list[Table]:
    """Of all that is there, one table each."""
    tables = []
    if any(f.name for f in found.features):
        tables.append(meanings(found.features))
    if found.candidates:
        tables.append(candidates(found))
    if found.pruned:
        tables.append(pruning(found))
    if found.interactions:
        tables.append(interactions(found))
    if found.dormant:
        tables.append(dormant(found))
    if found.curve:
        tables.append(_columns("All actuators together, at shares of their levels", ["dose", "refused", "degenerate"]))
        for point in found.curve:
            tables[-1].add_row(f"{point.dose:g}", _share(point.refused), _share(point.degenerate))
    return tables


def meanings(features: Sequence[Feature]) -> Table:
    """What each feature means."""
    table = _columns("What they mean", [])
    for column in ("feature", "name", "kinds it fires on", "alone at doses", "nearest", "place"):
        table.add_column(column)
    for f in features:
        m = f.meaning
        kinds = ", ".join(f"{kind.replace('_', ' ')} {rate:.0%}" for kind, rate in list(m.kinds.items())[:3])
        near = ", ".join(f"{other} {cosine:.2f}" for other, cosine in list(m.nearest.items())[:3])
        table.add_row(f"{f.id} {f.role}", f.name, kinds, _curve(m.curve), near, " › ".join(m.path))
    return table


def candidates(found: FeatureSet) -> Table:
    """The first candidates, with what each signal says of them and what they do alone."""
    table = _columns("Candidates for actuators", ["feature", "rank", *SCORES, *EFFECTS])
    for f in found.candidates[:SHOWN]:
        rank = f"{f.scores['rank']:.0f}" if "rank" in f.scores else ""
        effects = [" / ".join(_score(f, name) for name in pair if name in f.scores) for pair in EFFECTS.values()]
        table.add_row(str(f.id), rank, *(_score(f, name) for name in SCORES), *effects)
    if (more := len(found.candidates) - SHOWN) > 0:
        table.caption = f"and {more} more in the file"
    return table


def pruning(found: FeatureSet) -> Table:
    """The backward elimination."""
    table = _columns(
        "Pruned", ["without", "left", "log-odds of a refusal", "refused", "degenerate", "gone through with"]
    )
    for r in found.pruned:
        gone = "yes" if r.gone else "no"
        table.add_row(str(r.feature), str(r.left), f"{r.log_odds:.2f}", _share(r.refused), _share(r.degenerate), gone)
    return table


def interactions(found: FeatureSet) -> Table:
    """Pairs of actuators."""
    table = _columns("Pairs raised together (gain of the log-odds)", ["features", "together", "sum of each", "surplus"])
    for i in found.interactions[:SHOWN]:
        pair = " + ".join(map(str, i.features))
        table.add_row(pair, f"{i.together:.2f}", f"{i.apart:.2f}", f"{i.surplus:+.2f}")
    return table


def dormant(found: FeatureSet) -> Table:
    """Features that would take over."""
    table = _columns("Dormant: gain with the actuators ablated", ["feature", "before", "after"])
    for d in found.dormant:
        table.add_row(str(d.feature), f"{d.before:+.2f}", f"{d.after:+.2f}")
    return table


def _columns(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _score(feature: Feature, name: str) -> str:
    return f"{feature.scores[name]:.2f}" if name in feature.scores else ""


def _curve(points: Sequence[Dose]) -> str:
    return ", ".join(f"{p.dose:g}: {p.refused:.0%}" for p in points)


def _share(value: float) -> str:
    return f"{value:.0%}"
