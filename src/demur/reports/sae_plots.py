"""The drawings of an SAE's report: how often features are active, how near they lie, gates on new sources, directions."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

import altair as alt

from demur.features.purpose import Direction
from demur.records import Area, HeldOut
from demur.reports.plots import Chart, data, percent_axis
from demur.reports.words import clean, percent
from demur.sae.quality import DENSE

STEP = 0.25
"""Width of a bar of densities, in decades."""
NEAR = 0.05
"""Width of a bar of cosines."""
COLOURS = {"harm": "var(--complied)", "refusal": "var(--refused)", "random": "var(--plain)"}
WIDE, HIGH = 330, 190


def densities(shares: Sequence[float]) -> Chart:
    """Features by the share of tokens on which they are active, in decades; dead ones stand apart on the left."""
    alive = [log10(share) for share in shares if share > 0]
    first, dead = floor(min(alive, default=-1)), sum(share == 0 for share in shares)
    rows = []
    for i in range(round(-first / STEP)):
        low = first + i * STEP
        n = sum(low <= d < low + STEP or (d == 0 and low + STEP == 0) for d in alive)
        said = f"active on {_share(low)} to {_share(low + STEP)} of the tokens: {n} features"
        colour = "var(--complied)" if low + STEP > log10(DENSE) + 1e-9 else "var(--p0)"
        rows.append({"low": low, "high": low + STEP, "n": n, "said": said, "colour": colour})
    left = first - 1 - STEP
    rows.append({"low": left, "high": left + STEP, "n": dead, "said": f"never active: {dead} features"})
    rows[-1]["colour"] = "var(--bad)"
    ticks = [left + STEP / 2, *range(first, 1)]
    labels = "datum.value < " + str(first - STEP / 2) + " ? 'never' : " + _decades("datum.value", first)
    axis = alt.Axis(
        values=ticks, labelExpr=labels, labelOverlap=False, domain=False, tickSize=0, labelPadding=6, grid=False
    )
    x = alt.X("low:Q", title="share of the tokens on which a feature is active", axis=axis, scale=_exact(left, 0))
    return _bars(rows, x, "features")


def neighbours(cosines: Sequence[float]) -> Chart:
    """Features by the cosine of their decoder row with the nearest other."""
    rows = []
    for i in range(round(1 / NEAR)):
        low = i * NEAR
        n = sum(low <= c < low + NEAR or (i == 0 and c < 0) or (c >= 1 and low + NEAR > 0.999) for c in cosines)
        said = f"cosine with the nearest {low:.2f} to {low + NEAR:.2f}: {n} features"
        rows.append({"low": low, "high": low + NEAR, "n": n, "said": said, "colour": "var(--p0)"})
    axis = alt.Axis(
        values=[i / 5 for i in range(6)], format=".1f", domain=False, tickSize=0, labelPadding=6, grid=False
    )
    x = alt.X("low:Q", title="cosine with the nearest other feature", axis=axis, scale=_exact(0, 1))
    return _bars(rows, x, "features")


def gates(found: Mapping[str, Sequence[HeldOut]]) -> Chart:
    """A line for each reader: a tick for each pair of sources left out, the mean with its interval; hollow, the mean of
    the same rows with their sources among those fitted to.
    """
    ticks, means, names = [], [], []
    for what, readers in found.items():
        for h in readers:
            name = clean(f"{what}: {h.reader}")
            names.append(name)
            colour = {"name": name, "colour": COLOURS[what]}
            for p in h.pairs:
                pair = f"{p.harmful} against {p.benign}"
                ticks.append(colour | {"area": p.unseen.area, "said": f"{name}, {pair}: {_area(p.unseen)}"})
            for kind, area in (("sources left out", h.unseen), ("sources fitted to", h.seen)):
                fill = COLOURS[what] if kind == "sources left out" else "var(--page)"
                said = f"{name}, {kind}, mean: {_area(area)}"
                means.append(
                    colour | {"area": area.area, "low": area.low, "high": area.high, "fill": fill, "said": said}
                )
    least = min([t["area"] for t in ticks] + [0.5])
    low = floor(10 * least) / 10
    axis = alt.Axis(
        format=".1f", domain=False, tickSize=0, labelPadding=6, values=[i / 10 for i in range(round(10 * low), 11)]
    )
    x = alt.X("area:Q", title="area under the ROC curve", axis=axis, scale=_exact(low, 1))
    room = min(240, 8 + 7.3 * max(map(len, names)))
    bare = alt.Axis(domain=False, ticks=False, labelPadding=8, labelColor="var(--ink)", minExtent=room)
    y = alt.Y("name:N", sort=names, title=None, axis=bare)
    look = {"y": y, "description": "said:N"}
    half = alt.Chart(data([{"area": 0.5}] if low <= 0.5 else []))
    points = alt.Chart(data(means))
    inside, around = alt.Fill("fill:N", scale=None), alt.Stroke("colour:N", scale=None)
    layers: list[Any] = [
        half.mark_rule(stroke="var(--soft)", strokeDash=[2, 4], aria=False).encode(x=x),
        alt.Chart(data(ticks)).mark_tick(thickness=1.5, size=16, opacity=0.4).encode(x=x, stroke=around, **look),
        points.mark_rule(strokeWidth=2, aria=False).encode(x=alt.X("low:Q"), x2="high:Q", y=y, stroke=around),
        points.mark_point(filled=True, size=80, opacity=1, strokeWidth=1.5).encode(
            x=x, stroke=around, fill=inside, **look
        ),
    ]
    return alt.layer(*layers).properties(width=430, height=44 * len(names))


def spans(found: Sequence[Direction]) -> Chart:
    """The share of each direction that so many decoder rows make up, and of random directions."""
    lines = {d.name: d.spanned for d in found}
    draws = [d.spanned_random for d in found]
    lines["random"] = {n: sum(d[n] for d in draws) / len(draws) for n in draws[0]}
    rows = [
        {"n": n, "share": share, "colour": COLOURS[name], "name": name}
        | {"said": f"{name}, {n} decoder row{'s' if n > 1 else ''}: {percent(share)}"}
        for name, shares in lines.items()
        for n, share in shares.items()
    ]
    at = sorted({row["n"] for row in rows})
    axis = alt.Axis(values=at, format="~g", domain=False, tickSize=0, labelPadding=6, grid=False)
    x = alt.X("n:Q", title="decoder rows", axis=axis, scale=alt.Scale(type="log", domain=[at[0], at[-1]], padding=12))
    y = alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=percent_axis(3))
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=alt.Color("colour:N", scale=None))
    layers = [
        base.mark_line(strokeWidth=2, aria=False).encode(detail="name:N"),
        base.mark_point(filled=True, size=60, opacity=1).encode(description="said:N"),
    ]
    return alt.layer(*layers).properties(width=WIDE, height=HIGH)


def _bars(rows: list[dict[str, Any]], x: alt.X, what: str) -> Chart:
    rows = [row | {"floor": 0} for row in rows]
    y = alt.Y("n:Q", title=what, axis=alt.Axis(tickCount=4, format="~s", domain=False, tickSize=0, labelPadding=6))
    bars = alt.Chart(data(rows)).mark_bar(stroke="var(--page)", strokeWidth=1)
    return alt.layer(
        bars.encode(x=x, x2="high:Q", y=y, y2="floor:Q", color=alt.Color("colour:N", scale=None), description="said:N")
    ).properties(width=WIDE, height=HIGH)


def _exact(low: float, high: float) -> alt.Scale:
    return alt.Scale(domain=[low, high], nice=False, zero=False)


def _decades(value: str, first: int) -> str:
    named = {0: "100 %", -1: "10 %", -2: "1 %"} | {d: f"{10.0 ** (d + 2):g} %" for d in range(first, -2)}
    return " : ".join([*(f"{value} == {d} ? '{text}'" for d, text in named.items()), "''"])


def _share(decade: float) -> str:
    return f"{100 * 10**decade:.2g} %"


def _area(area: Area) -> str:
    return f"{area.area:.3f} [{area.low:.3f}, {area.high:.3f}]"
