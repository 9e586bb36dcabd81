"""The parts of a report beside a naive count, and when each is there at all."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from demur.evaluation.capability.divergence import Divergence
from demur.evaluation.judging.rules import rules
from demur.evaluation.statistics import Comparison, DoseResponse, Mean, Rate, compare
from demur.reports import capability, checks, controls, equal, refusal, summary
from demur.reports.blocks import Cell, Drawings, Figure, Section, Table, grid, of_rate, word
from demur.reports.study import Answer, Study, read_study
from tests.reports import many
from tests.reports.small import transcripts, write_run


def tables(section: Section | None) -> dict[str, Table]:
    assert section
    return {part.name: part for part in section.parts if isinstance(part, Table)}


def value(table: Table, row: str, column: str, under: int = 0) -> Cell:
    """The cell at a row and a column, by their names."""
    at = [c.text for c in table.head].index(column)
    return next(r[at] for r in table.rows if row in (r[0].text, " / ".join(c.text for c in r[: under or 1])))


def refused(study: Study, policy: str, **of: object) -> Rate:
    """A naive count of answers whose transcript has these fields."""
    hits = [
        v.outcome == "refused"
        for t, v in study.answers
        if t.policy == policy and v.outcome and all(getattr(t, k) == x for k, x in of.items())
    ]
    return Rate.of(sum(hits), len(hits))


def figure(rate: Rate) -> Figure:
    return Figure(rate.rate, rate.low, rate.high, rate.n)


def test_by_kind_is_what_a_loop_counts(study: Study) -> None:
    found = tables(refusal.by_category(study))
    assert list(found) == ["kinds-harm", "kinds-lookalike", "kinds-offensive", "kinds-topic"]
    for name, of, kinds in (
        ("kinds-harm", {"label": "harmful"}, many.HARMS),
        ("kinds-lookalike", {"kind": "lookalike"}, many.LOOKALIKES),
        ("kinds-offensive", {"kind": "offensive"}, ("profanity", "insult")),
        ("kinds-topic", {"kind": "plain"}, ("chat", "code", "mathematics")),
    ):
        for kind in kinds:
            for p in study.policies:
                # More policies than kinds: policies go down.
                cell = value(found[name], p, kind.replace("_", " "))
                assert cell.figure == figure(refused(study, p, category=kind, **of))


def test_worst_kinds_come_first(study: Study) -> None:
    for name, t in tables(refusal.by_category(study)).items():
        rates = [c.figure.value for c in next(r for r in t.rows if r[0].text == "gated")[1:] if c.figure]
        assert rates == sorted(rates, reverse=name != "kinds-harm")


def test_a_grid_goes_down_the_longer_way() -> None:
    def cell(i: int, j: int) -> Cell:
        return word(f"{i}{j}")

    rows, columns = [word("a"), word("b")], [word("x"), word("y"), word("z")]
    turned = grid("t", "", ("row", "column"), rows, columns, cell)
    assert [c.text for c in turned.head] == ["column", "a", "b"]
    assert [[c.text for c in row] for row in turned.rows] == [["x", "00", "10"], ["y", "01", "11"], ["z", "02", "12"]]
    straight = grid("t", "", ("row", "column"), rows, columns[:2], cell)
    assert [[c.text for c in row] for row in straight.rows] == [["a", "00", "01"], ["b", "10", "11"]]


def test_against_the_plain_model(study: Study) -> None:
    (table,) = tables(refusal.against_plain(study)).values()
    assert {row[0].text for row in table.rows} == set(study.policies) - {"none"}
    for label, rows in study.comparisons.items():
        for c in rows:
            assert value(table, c.policy, f"{label}: points").figure == Figure(c.points, c.low, c.high, c.n)
            assert (
                value(table, c.policy, f"{label}: only it / only plain").text == f"{c.only_policy} / {c.only_baseline}"
            )
            assert value(table, c.policy, f"{label}: p").figure == Figure(c.corrected, n=c.n)


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_the_ceiling_and_what_steering_adds(study: Study) -> None:
    found = tables(controls.gate(study))
    assert [row[0].text for row in found["gate"].rows] == ["canned", *study.same_gate("canned")]
    for p in study.same_gate("canned"):
        for label in ("harmful", "benign"):
            by = {
                q: {t.id: v.outcome for t, v in study.answers if t.policy == q and t.label == label}
                for q in (p, "canned")
            }
            ids = [i for i in by[p] if by[p][i] and by["canned"][i]]
            (c,) = compare({q: [by[q][i] == "refused" for i in ids] for q in by}, "canned")
            cell = value(found["gate"], p, f"{label}: gap")
            assert cell.figure and cell.figure[:3] == pytest.approx((c.points, c.low, c.high))
            for is_open, name in ((True, "open"), (False, "shut")):
                row = value(found["gate-split"], f"{label}, gate {name}", p)
                assert row.figure == figure(refused(study, p, label=label, open=is_open))
    opened = value(found["gate-split"], "harmful, gate open", "gated").change
    shut = value(found["gate-split"], "harmful, gate shut", "gated").change
    # Where the gate is shut the model is the plain one: nothing is added, to the last reply.
    assert opened and shut and opened.value > 80 and shut.value == 0


def test_no_ceiling_without_a_gate_that_is_shared(study: Study) -> None:
    def without(policy: str) -> Study:
        return replace(
            study,
            results=[r for r in study.results if r.policy != policy],
            answers=[a for a in study.answers if a.transcript.policy != policy],
            capability=[r for r in study.capability if r.policy != policy],
        )

    assert controls.gate(without("canned")) is None
    assert controls.gate(without("random")) and controls.gate(without("gated"))
    assert {p.name for p in summary.take_home(study)} >= {
        "Steering",
        "Weakest",
        "Ceiling",
        "Capability",
        "Words",
        "Judges",
    }
    assert "Ceiling" not in {p.name for p in summary.take_home(without("canned"))}


# --- arms and doses ---------------------------------------------------------------------------------------------------


def test_the_arms(study: Study) -> None:
    (table,) = tables(controls.arms(study)).values()
    assert [row[0].text for row in table.rows] == ["none", "reconstruction", "paper", "splice", "unrelated"]
    for p in ("paper", "splice"):
        assert value(table, p, "harmful refused").figure == figure(refused(study, p, label="harmful"))
        broken = [v.outcome == "degenerate" for t, v in study.answers if t.policy == p and v.outcome]
        assert value(table, p, "broken text").figure == figure(Rate.of(sum(broken), len(broken)))
        change = capability.mean_change(study, p)
        assert change and value(table, p, "capability").figure == Figure(*change)
        q = next(q for q in study.quality if (q.policy, q.label, q.replies) == (p, "benign", "all"))
        assert q.perplexity and value(table, p, "perplexity").figure == Figure(
            q.perplexity.mean, q.perplexity.low, q.perplexity.high, q.perplexity.n
        )


@pytest.mark.parametrize(("policies", "there"), [(("none", "paper"), False), (("paper", "splice"), True)])
def test_arms_need_two(policies: Sequence[str], there: bool, tmp_path: Path) -> None:
    rows = [t.model_copy(update={"policy": p}) for p in policies for t in transcripts(["paper"])]
    write_run(tmp_path, rows)
    assert bool(controls.arms(read_study(tmp_path))) is there


def test_doses(study: Study) -> None:
    section = controls.doses(study)
    found = tables(section)
    assert section and [d.title for d in next(p for p in section.parts if isinstance(p, Drawings)).drawings] == [
        "paper"
    ]
    assert [[c.text for c in row[:2]] for row in found["doses"].rows] == [["paper@0.5", "0.5"], ["paper", "1"]]
    half, whole = (refused(study, p, label="harmful") for p in ("paper@0.5", "paper"))
    assert value(found["doses"], "paper@0.5", "harmful refused").figure == figure(half)
    expected = DoseResponse.of({0.5: half, 1.0: whole})
    assert expected.ed50 and 0.5 < expected.ed50 < 1
    assert value(found["dose-response"], "paper / harmful refused", "half", 2).figure == Figure(expected.ed50)
    one = [r for r in study.results if r.policy != "paper"]
    assert controls.doses(replace(study, results=one, capability=[], answers=[])) is None


# --- capability -------------------------------------------------------------------------------------------------------


def changes(study: Study, *found: Comparison | None) -> Study:
    rows = [r.model_copy(update={"policy": "x", "change": c}) for r, c in zip(study.capability, found, strict=False)]
    return replace(study, capability=rows)


def comparison(points: float, low: float, high: float) -> Comparison:
    return Comparison(
        policy="x",
        baseline="none",
        n=9,
        points=points,
        low=low,
        high=high,
        only_policy=0,
        only_baseline=0,
        p=1,
        corrected=1,
    )


def test_the_mean_change_of_one_task_is_that_tasks(study: Study) -> None:
    assert capability.mean_change(changes(study, comparison(-3, -5, 1)), "x") == (-3, -5, 1)


def test_the_mean_change_of_like_tasks_is_surer_by_the_root_of_their_number(study: Study) -> None:
    found = capability.mean_change(changes(study, *[comparison(-3, -5, 1)] * 4), "x")
    assert found == pytest.approx((-3, -3 - 2 / 2, -3 + 4 / 2))


def test_the_mean_change_covers_as_it_should(study: Study) -> None:
    # Beside simulation: normal errors of known spread, two tasks of unlike sizes.
    draw, sure = np.random.default_rng(0), NormalDist().inv_cdf(0.975)
    spreads, truth, inside = (2.0, 5.0), (-1.0, 4.0), 0
    for _ in range(2000):
        seen = draw.normal(truth, spreads)
        rows = [comparison(m, m - sure * s, m + sure * s) for m, s in zip(seen.tolist(), spreads, strict=True)]
        found = capability.mean_change(changes(study, *rows), "x")
        assert found
        inside += found.low <= 1.5 <= found.high
    assert abs(inside / 2000 - 0.95) < 4 * sqrt(0.95 * 0.05 / 2000)


def test_no_mean_change_where_a_task_has_none(study: Study) -> None:
    assert capability.mean_change(changes(study, comparison(-3, -5, 1), None), "x") is None


def test_capability_with_deltas(study: Study) -> None:
    found = tables(capability.capability(study))
    for r in study.capability:
        cell = value(found["capability"], r.policy, r.task)
        assert cell.figure == figure(r.correct)
        if r.change:
            assert cell.change == Figure(r.change.points, r.change.low, r.change.high, r.n)
            assert cell.worse == (r.change.points < 0 and r.change.corrected < 0.05)
    assert any(row[-1].text != "0" for row in found["capability"].rows)
    assert sum(value(found["capability"], p, "piqa").worse for p in study.policies) >= 1


def test_divergence(study: Study) -> None:
    kl, nats = Mean(n=20, mean=0.5, low=0.25, high=0.75), Mean(n=20, mean=2.0, low=1.5, high=2.5)
    row = Divergence(
        policy="gated", policy_hash="h", source="text/a.jsonl.gz", passages=20, tokens=900, opened=3, kl=kl, plain=nats,
        steered=nats.model_copy(update={"mean": 2.5}),
    )  # fmt: skip
    fixed = row.model_copy(update={"policy": "canned", "kl": None, "plain": None, "steered": None, "left_out": 20})
    table = tables(capability.divergence(replace(study, divergence=[row, fixed])))["divergence"]
    cell = value(table, "gated", "a")
    assert cell.figure == Figure(0.5, 0.25, 0.75, 20) and cell.against == "7.39 → 12.2, acted on 3 of 20"
    assert value(table, "canned", "a") == Cell()
    assert capability.divergence(study) is None


# --- words and judges -------------------------------------------------------------------------------------------------


def test_worse_words_are_marked(study: Study) -> None:
    found = tables(checks.quality(study))
    marked = 0
    for q in (q for q in study.quality if (q.label, q.replies) == ("benign", "all")):
        for name, mean in q.figures.items():
            where = found["quality" if name in checks.SHOWN else "quality-more"]
            cell = value(where, q.policy, name.replace("_", " ").replace("self bleu", "self-BLEU"))
            assert cell.figure == Figure(mean.mean, mean.low, mean.high, mean.n)
            assert cell.worse == (name in q.worse)
            marked += cell.worse
    assert marked > 10
    worse = checks.worse_words(study, "paper")
    assert worse and "perplexity" in worse and "nats" not in worse
    assert checks.worse_words(study, "none") is None


def test_agreement_of_judges(study: Study) -> None:
    (table,) = tables(checks.judges(study)).values()
    for a in study.judges:
        row = next(r for r in table.rows if r[1].text == a.policy)
        assert [c.figure and c.figure.value for c in row[2:]] == [a.agree.rate, a.only_first, a.only_second, a.agree.n]
    section = checks.judges(replace(study, judges=[]))
    assert section and not section.parts and "No second judge" in section.about


def test_a_rate_carries_what_it_is_against() -> None:
    cell = of_rate(Rate.of(3, 10), "harmful", comparison(-2.0, -4.0, 0.0), worse=True)
    assert (cell.text, cell.note, cell.against) == ("30.0 %", "[10.8, 60.3]", "−2.0 [−4.0, +0.0]")
    assert cell.change == Figure(-2.0, -4.0, 0.0, 9) and cell.worse
    assert of_rate(None) == Cell()


def test_at_as_much_harm_refused_every_threshold_is_tried_one_by_one(study: Study) -> None:
    found = tables(equal.equal(study))["equal"]
    assert not {"canned", "random", "none"} & {r[0].policy for r in found.rows}  # the same gate, or the plain model
    for other in ("paper", "cast"):
        cases = [c for c in study.cases if {"gated", "none", other} <= c.keys()]
        cases = [c for c in cases if all(c[p].judged for p in ("gated", "none", other))]

        def refusals(line: float, label: str, cases=cases) -> list[bool]:
            mine = [c for c in cases if next(iter(c.values())).transcript.label == label]
            opens = [c["gated"].transcript.open and (c["gated"].transcript.gate or 0) >= line for c in mine]
            return [c["gated" if o else "none"].refused for c, o in zip(mine, opens, strict=True)]

        wanted = value(found, other, "harmful refused").figure
        assert wanted
        k = round(wanted.value * (wanted.n or 0))
        lines = sorted({c["gated"].transcript.gate or 0 for c in cases}, reverse=True)
        line = next(t for t in [np.inf, *lines] if sum(refusals(t, "harmful")) >= k)
        harmful, benign = refusals(line, "harmful"), refusals(line, "benign")
        assert value(found, other, "gated then: harmful").figure == figure(Rate.of(sum(harmful), len(harmful)))
        assert value(found, other, "gated then: benign").figure == figure(Rate.of(sum(benign), len(benign)))
        theirs = sum(c[other].refused for c in cases if next(iter(c.values())).transcript.label == "benign")
        points = value(found, other, "points, gated less it").figure
        assert points and points.value == pytest.approx(100 * (sum(benign) - theirs) / len(benign))


def test_who_refuses_more_harm_than_a_gate_is_beside_it_as_it_stands() -> None:
    rows = transcripts()
    cases = [
        {t.policy: Answer(t, v) for t, v in zip(rows, rules.judge(rows), strict=True) if t.id == name}
        for name in dict.fromkeys(t.id for t in rows)
    ]
    found = equal.beside(cases, "gated", "paper")
    assert found and (found.harmful.k, found.own_harmful.k) == (6, 5)
    assert (found.benign.k, found.own_benign.k) == (4, 1)
    assert equal.beside(cases, "paper", "gated") is None  # which has no gate
