"""The drawings: the trade-off, what became of the requests, and what a dose does.

Every chart takes its colours from the page (`var(--…)`), draws 95 % Wilson intervals, and names what it shows directly
or through a legend.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import altair as alt

from demur.evaluation.statistics import Rate
from demur.records import Outcome
from demur.reports.placing import placed
from demur.reports.study import CEILING, PLAIN, Study
from demur.reports.words import clean, interval, percent

SIDE = 430
"""Pixels of the trade-off's square."""
ROOM = 90
"""Pixels right of it that names may use."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
OUTCOMES: tuple[str, ...] = get_args(Outcome)

Chart = alt.LayerChart | alt.FacetChart


class Mark(NamedTuple):
    """How a policy looks in every figure."""

    colour: str
    shape: str


def marks(study: Study) -> dict[str, Mark]:
    """A colour and a shape for each policy; the plain model is grey."""
    steered = [p for p in study.policies if p != PLAIN]
    found = {p: Mark(f"var(--p{i % 7})", SHAPES[(i + i // 7) % 7]) for i, p in enumerate(steered)}
    return {p: found.get(p, Mark("var(--plain)", "circle")) for p in study.policies}


# --- the trade-off ---------------------------------------------------------------------------------------------------


def trade_off(study: Study) -> Chart | None:
    """Benign refused (x) against harmful refused (y), a point a policy; None unless some policy has both."""
    if not study.both:
        return None
    x = alt.X("x:Q", title="benign requests refused", scale=alt.Scale(domain=[0, 1]), axis=percent_axis(5))
    y = alt.Y("y:Q", title="harmful requests refused", scale=alt.Scale(domain=[0, 1]), axis=percent_axis(5))
    looks = marks(study)
    base = alt.Chart(data([_point(p, h, b, looks[p]) for p, (h, b) in study.both.items()]))
    colour = alt.Color("colour:N", scale=None)
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.45, aria=False)
    layers: list[Any] = [
        _line([(0, 0), (1, 1)], x, y, stroke="var(--soft)", strokeWidth=1, strokeDash=[2, 4]),
        *(
            _line(_at(study, doses.values()), x, y, stroke=looks[next(iter(doses.values()))].colour, strokeWidth=1)
            for doses in study.families.values()
        ),
        _line(_at(study, study.front), x, y, stroke="var(--front)", strokeWidth=2.5, interpolate="step-after"),
        bars.encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=colour),
        bars.encode(y=alt.Y("y_low:Q"), y2="y_high:Q", x=x, color=colour),
        base.mark_point(filled=True, size=95, opacity=1, strokeWidth=1.5).encode(
            x=x,
            y=y,
            shape=alt.Shape("shape:N", scale=None),
            description="said:N",
            stroke=alt.Stroke("colour:N", scale=None),
            fill=alt.Fill("inside:N", scale=None),
        ),
    ]
    return alt.layer(*layers, *_names(study, looks, x, y)).properties(width=SIDE, height=SIDE)


def _names(study: Study, looks: Mapping[str, Mark], x: Any, y: Any) -> list[Any]:
    at = {p: (SIDE * b.rate, SIDE * (1 - h.rate)) for p, (h, b) in study.both.items()}
    shown = {clean(p): p for p in at}
    named = {name: at[p] for name, p in shown.items()}
    found: list[Any] = []
    for block in placed(named, (2, -12, SIDE + ROOM, SIDE + 5), _stairs([at[p] for p in study.front])):
        if block.leader:
            ends = [(cx / SIDE, 1 - cy / SIDE) for cx, cy in block.leader]
            found.append(_line(ends, x, y, stroke="var(--soft)", strokeWidth=0.8))
        # The names of a block begin where they are nearest to its points, whichever font the page gets.
        points = [at[shown[name]][0] for name in block.names]
        right = block.boxes[0][2] <= min(points)
        for name, (left, top, end, bottom) in zip(block.names, block.boxes, strict=True):
            spot = {"x": (end if right else left) / SIDE, "y": 1 - (top + bottom) / 2 / SIDE, "name": name}
            text = alt.Chart(data([spot])).mark_text(
                fontSize=12,
                fontWeight="bold",
                fill=looks[shown[name]].colour,
                baseline="middle",
                align="right" if right else "left",
            )
            found.append(text.encode(x=x, y=y, text="name:N"))
    return found


def _stairs(front: list[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The segments of the front's line, which goes right first and then up."""
    found = []
    for (x0, y0), (x1, y1) in pairwise(front):
        found += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    return found


def _at(study: Study, policies: Any) -> list[tuple[float, float]]:
    return [(study.both[p][1].rate, study.both[p][0].rate) for p in policies if p in study.both]


def _line(spots: list[tuple[float, float]], x: Any, y: Any, **look: Any) -> alt.Chart:
    rows = [{"x": sx, "y": sy, "order": i} for i, (sx, sy) in enumerate(spots)]
    return alt.Chart(data(rows)).mark_line(aria=False, **look).encode(x=x, y=y, order="order:Q")


def _point(policy: str, harmful: Rate, benign: Rate, look: Mark) -> dict[str, Any]:
    said = (
        f"{clean(policy)}: harmful refused {percent(harmful.rate)} {interval(harmful)}, "
        f"benign refused {percent(benign.rate)} {interval(benign)}"
    )
    edges = {"x_low": benign.low, "x_high": benign.high, "y_low": harmful.low, "y_high": harmful.high}
    inside = "var(--page)" if policy == CEILING else look.colour
    return {"x": benign.rate, "y": harmful.rate, "said": said, "inside": inside} | edges | look._asdict()


# --- outcomes --------------------------------------------------------------------------------------------------------


def outcomes(study: Study, label: str) -> Chart:
    """One bar a policy: the share of each outcome."""
    names = [p for p in study.policies if study.outcomes(p, label)]
    rows = []
    for p in names:
        counts, start = study.outcomes(p, label), 0.0
        for o in (o for o in OUTCOMES if counts[o]):
            share = counts[o] / counts.total()
            said = f"{clean(p)}, {label}: {o} {counts[o]} of {counts.total()} ({percent(share)})"
            text = f"{100 * share:.0f}" if share >= 0.08 else ""
            colours = {"colour": f"var(--{o})", "ink": f"var(--on-{o})"}
            middle = start + share / 2
            rows.append(
                {"name": clean(p), "from": start, "to": start + share, "middle": middle, "text": text, "said": said}
                | colours
            )
            start += share
    y = alt.Y("name:N", sort=[clean(p) for p in names], title=None, axis=_bare_axis(names))
    base = alt.Chart(data(rows)).encode(y=y)
    x = alt.X("from:Q", title=None, scale=alt.Scale(domain=[0, 1], nice=False), axis=percent_axis(3))
    bars = base.mark_bar(height=18, stroke="var(--page)", strokeWidth=1).encode(
        x=x, x2="to:Q", color=alt.Color("colour:N", scale=None), description="said:N"
    )
    text = base.mark_text(fontSize=11).encode(x="middle:Q", text="text:N", color=alt.Color("ink:N", scale=None))
    return alt.layer(bars, text).properties(width=330, height=25 * len(names))


# --- doses -----------------------------------------------------------------------------------------------------------

CURVES = {"harmful refused": "var(--refused)", "benign refused": "var(--complied)", "broken text": "var(--degenerate)"}


def doses(curves: Mapping[str, Mapping[float, Rate]]) -> Chart:
    """One line for each of CURVES that is given: its rate at each dose, with the interval."""
    rows = [
        {"dose": dose, "rate": r.rate, "low": r.low, "high": r.high, "colour": CURVES[name]}
        | {"said": f"{name} at dose {dose:g}: {percent(r.rate)} {interval(r)}"}
        for name, rates in curves.items()
        for dose, r in sorted(rates.items())
    ]
    at = sorted({row["dose"] for row in rows})
    axis = alt.Axis(values=at, format="~g", domain=False, tickSize=0, labelPadding=6, grid=False)
    x = alt.X("dose:Q", title="dose", axis=axis, scale=alt.Scale(domain=[at[0], at[-1]], nice=False, padding=12))
    y = alt.Y("rate:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=percent_axis(3))
    base = alt.Chart(data(rows)).encode(x=x, color=alt.Color("colour:N", scale=None))
    layers = [
        base.mark_line(strokeWidth=2, aria=False).encode(y=y),
        base.mark_rule(strokeWidth=1.5, opacity=0.5, aria=False).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, description="said:N"),
    ]
    return alt.layer(*layers).properties(width=330, height=170)


def data(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows that a chart carries with it."""
    return alt.InlineData(values=rows)


def percent_axis(ticks: int) -> alt.Axis:
    """From 0 to 100 %, for shares of 1."""
    values = [i / (ticks - 1) for i in range(ticks)]
    return alt.Axis(
        values=values,
        labelExpr="round(100 * datum.value) + ' %'",
        domain=False,
        tickSize=0,
        labelPadding=6,
        labelFlush=False,
    )


def _bare_axis(names: list[str]) -> alt.Axis:
    # Room for the widest of the fonts that the page may get; the drawing is measured with another one.
    room = min(240, 8 + 7.3 * max(len(name) for name in names))
    return alt.Axis(domain=False, ticks=False, labelPadding=8, labelColor="var(--ink)", minExtent=room)
