"""The front of a calibration as a drawing: every way to act that was tried, and which one was taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from demur.calibration.calibrate import Front
from demur.calibration.trials import Trial
from demur.files import replacing
from demur.reports.plots import data, percent_axis

COLOURS = {"tried": "#9aa3ad", "on the front": "#2f6fb0", "finalist, on more prompts": "#b4540a", "chosen": "#a01646"}
"""On white, and told apart without colour by their shapes."""
SHAPES = ("circle", "circle", "diamond", "cross")


def draw_front(front: Front, path: Path) -> None:
    """Benign refused with the gate forced open (x) against harmful refused (y), an SVG file; bars are 95 % intervals."""
    rows = [_point(t, "on the front" if t.number in front.front else "tried") for t in front.trials]
    rows += [_point(t, "chosen" if t.number == front.chosen else "finalist, on more prompts") for t in front.confirmed]
    rows.sort(key=lambda row: list(COLOURS).index(row["what"]))
    shown = [name for name in COLOURS if any(row["what"] == name for row in rows)]
    x = alt.X("x:Q", title="benign refused, gate forced open", scale=alt.Scale(domain=[0, 1]), axis=percent_axis(5))
    y = alt.Y("y:Q", title="harmful refused", scale=alt.Scale(domain=[0, 1]), axis=percent_axis(5))
    colour = alt.Color("what:N", title=None, scale=alt.Scale(domain=shown, range=[COLOURS[s] for s in shown]))
    shape = alt.Shape(
        "what:N", title=None, scale=alt.Scale(domain=shown, range=[SHAPES[list(COLOURS).index(s)] for s in shown])
    )
    base = alt.Chart(data(rows))
    bars = alt.Chart(data([row for row in rows if row["what"] == "chosen"]))
    chart = alt.layer(
        bars.mark_rule(opacity=0.6).encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=colour),
        bars.mark_rule(opacity=0.6).encode(x=x, y=alt.Y("y_low:Q"), y2="y_high:Q", color=colour),
        base.mark_point(filled=True, size=70, opacity=0.9).encode(
            x=x, y=y, color=colour, shape=shape, tooltip="said:N", description="said:N"
        ),
    ).properties(width=430, height=430)
    with replacing(path) as tmp:
        chart.configure(background="white", font="sans-serif").configure_view(stroke=None).save(tmp, format="svg")


def in_words(trial: Trial) -> str:
    """What a way to act is, in short."""
    p = trial.params
    flags = [v for k, v in p.items() if k.startswith("feature ")]
    parts = [f"{sum(flags) if flags else 1} features × {p['dose']:.2f} ({p['positions']})"]
    parts += [f"onset {p['onset']}"] if p.get("onset") else []
    parts += [f"falls over {p['decay']} after {p['hold']}"] if p.get("hold") else []
    parts += [f"soft {p['soft']:g}"] if p.get("soft") else []
    return ", ".join(parts)


def _point(t: Trial, what: str) -> dict[str, Any]:
    drawn = f" ({t.drawn} where drawn)" if t.drawn else ""
    said = (
        f"{what}: trial {t.number}, {in_words(t)}; harmful refused {t.refused}{drawn}, benign {t.benign_refused}, "
        f"degenerate {t.degenerate}, {t.nats:.2f} nats, KL {t.kl:.3f}"
    )
    edges = {"x_low": t.benign_refused.low, "x_high": t.benign_refused.high}
    edges |= {"y_low": t.refused.low, "y_high": t.refused.high}
    return {"x": t.benign_refused.rate, "y": t.refused.rate, "what": what, "said": said} | edges


def front_rows(trials: Sequence[Trial], chosen: int) -> list[list[str]]:
    """Finalists as rows of a table: what, refused, refused where drawn, benign refused, degenerate, fluent, nats, KL."""
    return [
        [
            f"{'→ ' if t.number == chosen else ''}{in_words(t)}",
            str(t.refused),
            str(t.drawn or "-"),
            str(t.benign_refused),
            str(t.degenerate),
            str(t.fluent) if t.fluent else "-",
            f"{t.nats:.2f}",
            f"{t.kl:.3f}",
        ]
        for t in trials
    ]
