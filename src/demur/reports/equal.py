"""A gated policy beside the others at as much harm refused: its threshold raised, on the replies that are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from demur.evaluation.statistics import Comparison, Rate, compare, holm
from demur.reports.blocks import Cell, Figure, Section, Table, of_points, of_policy, of_rate, word
from demur.reports.study import PLAIN, Case, Study, first
from demur.reports.words import clean, p_value


@dataclass(frozen=True)
class Beside:
    """Another policy, and the gated one at as much harm refused."""

    harmful: Rate
    """Refused by the other."""
    own_harmful: Rate
    benign: Rate
    own_benign: Rate
    compared: Comparison
    """Benign requests refused by the gated one less those refused by the other."""


def equal(study: Study) -> Section | None:
    """The best policy, where it has a gate, against each without that gate; None where the plain model was not asked."""
    own = study.best
    # Attacks ask for one thing in many ways, and have tables of their own.
    cases = [c for c in study.cases if {own, PLAIN} <= c.keys() and first(c).goal is None]
    rest = [p for p in study.policies if p not in (own, PLAIN, *study.same_gate(own))]
    found = {p: b for p in rest if (b := beside(cases, own, p))}
    if not found:
        return None
    name = clean(own)
    about = (
        f"Policies refuse more or less, so their benign refusals are not beside each other in the tables above. Here the "
        f"threshold of {name}'s gate is raised, against each, as far as leaves it as much harm refused; below the threshold "
        f"it is the plain model, so both its replies are there. Where the other refuses more harm than {name} at all, "
        f"{name} stands as it is. p: exact McNemar test on the benign requests, after Holm's correction for all rows. "
        "The thresholds are found on these prompts: a comparison, not a setting."
    )
    head = [word("policy"), word("harmful refused"), word(f"{name} then: harmful"), word("benign refused")]
    head += [word(f"{name} then: benign"), word(f"points, {name} less it"), word(f"only {name} / only it"), word("p")]
    ps = holm([b.compared.p for b in found.values()])
    rows = [[of_policy(p), *_row(b, corrected)] for (p, b), corrected in zip(found.items(), ps, strict=True)]
    table = Table("equal", f"Benign requests refused, with {name} at as much harm refused.", head, rows)
    return Section("equal", "At as much harm refused", about, [table])


def beside(cases: Sequence[Case], own: str, other: str) -> Beside | None:
    """The two on the prompts that both were asked; None without a gate, or without harmful and benign ones."""
    both = [c for c in cases if other in c and all(c[p].judged for p in (own, other, PLAIN))]
    both = [c for c in both if c[own].transcript.gate is not None]
    harmful, benign = ([c for c in both if first(c).label == label] for label in ("harmful", "benign"))
    if not harmful or not benign:
        return None
    wanted = sum(c[other].refused for c in harmful)
    lines = sorted({_score(c, own) for c in harmful if c[own].transcript.open}, reverse=True)
    line = next((t for t in (inf, *lines) if sum(_refused(c, own, t) for c in harmful) >= wanted), -inf)
    mine, theirs = [_refused(c, own, line) for c in benign], [c[other].refused for c in benign]
    return Beside(
        harmful=Rate.of(wanted, len(harmful)),
        own_harmful=Rate.of(sum(_refused(c, own, line) for c in harmful), len(harmful)),
        benign=Rate.of(sum(theirs), len(benign)),
        own_benign=Rate.of(sum(mine), len(benign)),
        compared=compare({own: mine, other: theirs}, other)[0],
    )


def _score(case: Case, own: str) -> float:
    return case[own].transcript.gate or 0.0


def _refused(case: Case, own: str, line: float) -> bool:
    opens = case[own].transcript.open and _score(case, own) >= line
    return case[own if opens else PLAIN].refused


def _row(b: Beside, corrected: float) -> list[Cell]:
    c = b.compared
    return [
        of_rate(b.harmful, "harmful"),
        of_rate(b.own_harmful, "harmful"),
        of_rate(b.benign, "benign"),
        of_rate(b.own_benign, "benign"),
        of_points(c.points, c.low, c.high, c.n),
        word(f"{c.only_policy} / {c.only_baseline}"),
        Cell(p_value(corrected), figure=Figure(corrected, n=c.n)),
    ]
