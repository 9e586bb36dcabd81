"""An SAE's findings as a report: on text, its features, the gates and the directions that it is for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demur import runs
from demur.features.examine import Findings
from demur.features.purpose import Direction
from demur.files import read_json
from demur.records import Area, HeldOut
from demur.reports import plain, sae_plots
from demur.reports.blocks import Cell, Drawing, Drawings, Figure, Point, Report, Section, Table, folded, word
from demur.reports.page import FIGURES, HTML, MARKDOWN, page, write_all
from demur.reports.svg import draw
from demur.reports.words import clean, listed, percent
from demur.sae.quality import DENSE, Quality

SHIPPED = "shipped"
"""The name of the SAE where none was given."""
LIKE = (0.9, 0.7, 0.5)
"""Cosines from which on decoder rows are counted as near."""
READS = ("Harm", "Refusal")
HALVES = {"harm": ("harmful prompts", "benign prompts"), "refusal": ("refusing replies", "compliant replies")}
"""What the two sides of a gate are, by what it reads."""


def write_sae_report(folder: Path, found: Findings) -> Path:
    """Writes `report.html`, `report.md` and `figures.csv` into the folder of a run of `demur sae-report`.

    Returns:
        The path of the page.
    """
    made = report(found, folder)
    write_all(folder, {FIGURES: plain.figures_csv(made), MARKDOWN: plain.markdown(made), HTML: page(made)})
    return folder / HTML


def report(found: Findings, folder: Path) -> Report:
    """Everything that is printed."""
    c = found.config
    rule = f"{c.rule} k = {c.k}" if c.k else c.rule
    return Report(
        kind=f"demur sae-report · {clean(found.name)}",
        title=f"SAE of {clean(c.model)} at {c.site}: {c.d_sae} features, {rule}",
        headline=headline(found),
        about=f"Measured on {found.text.about}; on {found.harm.rows}; and on {found.refusal.rows}. Intervals are 95 % "
        "(bootstrap).",
        points=_points(found),
        sections=[_text(found), _features(found), _gates(found), _directions(found)],
        facts=_facts(found, folder),
        again="demur sae-report" + (f" {found.name}" if found.name != SHIPPED else "") + " --run FOLDER",
        hero=Drawing(
            draw(sae_plots.gates(found.gates), "Areas of gates on sources that they were not fitted to."),
            "",
            "How well harm and refusal are read where the sources are new. A tick is a pair of sources that were left out; "
            "a dot, their mean with its 95 % interval; hollow, the mean where they were among those fitted to.",
        ),
    )


def headline(found: Findings) -> str:
    """What was found, in one sentence."""
    q, c = found.text.whole, found.config
    parts = [
        f"{g[0].unseen.area:.3f} for {what} (dense probe {g[1].unseen.area:.3f})" for what, g in found.gates.items()
    ]
    return (
        f"{q.l0:.1f} of {c.d_sae} features a token explain {percent(1 - q.fvu)} of the variance and keep "
        f"{percent(q.loss_recovered)} of the loss; gates of {found.gates['harm'][0].reader.split()[0]} features, on new "
        f"sources, have areas of {listed(parts)}."
    )


def _points(found: Findings) -> list[Point]:
    q = found.text.whole
    near = np.asarray(found.text.nearest)
    return [
        Point(
            "Text",
            "text",
            f"spliced in, the reconstruction raises the loss from {q.loss_plain:.3f} to {q.loss_spliced:.3f} nats a token "
            f"(zeros: {q.loss_zeroed:.2f}); KL {q.kl_spliced:.3f}.",
        ),
        Point(
            "Features",
            "features",
            f"{percent(q.dead)} were not active once in {q.tokens} tokens, {percent(q.dense)} are active on more than "
            f"{100 * DENSE:.0f} % of them; {percent(float((near > LIKE[0]).mean()))} have a twin (cosine above {LIKE[0]}).",
        ),
        *(
            Point(name, "gates", _lost(gates[0], gates[1], d))
            for name, gates, d in zip(READS, found.gates.values(), found.directions, strict=True)
        ),
    ]


def _lost(sparse: HeldOut, dense: HeldOut, d: Direction) -> str:
    worst = min(sparse.pairs, key=lambda p: p.unseen.area)
    lost = [100 * (h.seen.area - h.unseen.area) for h in (sparse, dense)]
    return (
        f"where the sources are new, {sparse.reader} lose {lost[0]:.1f} points of area, the dense probe {lost[1]:.1f}; "
        f"hardest is {clean(worst.harmful)} against {clean(worst.benign)} ({worst.unseen.area:.3f}). The reconstruction "
        f"keeps {percent(d.kept)} of the direction's length (cosine {d.cosine:.3f})."
    )


# --- sections --------------------------------------------------------------------------------------------------------


def _text(found: Findings) -> Section:
    head = [
        word("text", "tokens; with losses"),
        word("variance unexplained", "FVU"),
        word("active a token", "L0"),
        word("loss", "nats a token"),
        word("reconstruction in its place", "loss"),
        word("zeros in its place", "loss"),
        word("loss recovered"),
        word("KL", "plain ‖ spliced"),
    ]
    rows = [_quality(name, q) for name, q in found.text.by_text.items()]
    if len(rows) > 1:
        rows.append(_quality("all", found.text.whole))
    about = (
        "Variance unexplained: what the reconstruction leaves of the activations' variance, each text against its own "
        "mean. Loss recovered: (zeros − reconstruction) / (zeros − plain). First tokens of sequences, attention sinks, are "
        "left out and never replaced."
    )
    return Section(
        "text", "On held-out text", about, [Table("text", f"Figures on {found.text.about}.", head, rows)], "Text"
    )


def _quality(name: str, q: Quality) -> list[Cell]:
    return [
        word(name, f"{q.tokens}; {q.predicted}"),
        _number(q.fvu, 4, q.tokens),
        _number(q.l0, 1, q.tokens),
        *(_number(x, 3, q.predicted) for x in (q.loss_plain, q.loss_spliced, q.loss_zeroed)),
        Cell(percent(q.loss_recovered), figure=Figure(q.loss_recovered, n=q.predicted)),
        _number(q.kl_spliced, 3, q.predicted),
    ]


def _features(found: Findings) -> Section:
    density, near, q = np.asarray(found.text.density), np.asarray(found.text.nearest), found.text.whole
    alive = density[density > 0]
    drawings = Drawings(
        [
            Drawing(draw(sae_plots.densities(density.tolist()), "Features by density."), "How often they are active"),
            Drawing(draw(sae_plots.neighbours(near.tolist()), "Features by nearest cosine."), "How near they lie"),
        ],
        [
            ("dead", "var(--bad)"),
            ("active on at most a tenth of the tokens", "var(--p0)"),
            ("dense", "var(--complied)"),
        ],
    )
    shares = [
        ("not active once", float((density == 0).mean())),
        (f"active on more than {100 * DENSE:.0f} % of the tokens", q.dense),
    ]
    shares += [(f"nearest cosine above {c}", float((near > c).mean())) for c in LIKE]
    rows = [[word(what), Cell(percent(s), figure=Figure(s, n=len(density))), _count(s, density)] for what, s in shares]
    rows.append(
        [word("median share of tokens, of those active"), Cell(_small(alive), figure=Figure(_median(alive))), Cell()]
    )
    about = (
        f"Counted over {q.tokens} tokens; with more text, fewer features are not active once. Two decoder rows with a "
        "cosine near 1 are one feature kept twice."
    )
    table = Table(
        "features",
        "Features by how often they are active and how near they lie.",
        _head("features", "share", "number"),
        rows,
    )
    return Section("features", "The features", about, [drawings, table])


def _gates(found: Findings) -> Section:
    head = _head("reads", "reader", "sources left out", "sources fitted to", "lost")
    rows = []
    parts: list[Table] = []
    for what, readers in found.gates.items():
        for h in readers:
            lost = h.seen.area - h.unseen.area
            rows.append([word(what), word(h.reader), _area(h.unseen), _area(h.seen), _number(lost, 3)])
            parts.append(_pairs(what, h))
    about = (
        "A gate is fitted without one source of each label and measured on those two; beside it stands the same with both "
        "among the sources fitted to. What is lost between them was style. The dense probe reads every dimension of the "
        "stream: what the features lose against it is the price of sparsity. Half is chance, 1 is perfect."
    )
    table = Table("gates", "Area under the ROC curve, mean over pairs of sources.", head, rows, 2)
    return Section("gates", "Reading harm and refusal", about, [table, *parts], "Gates")


def _pairs(what: str, h: HeldOut) -> Table:
    rows = [
        [word(clean(p.harmful)), word(clean(p.benign)), _area(p.unseen), _area(p.seen)]
        for p in sorted(h.pairs, key=lambda p: p.unseen.area)
    ]
    caption = f"{what}, {h.reader}: every pair of sources, hardest first."
    if h.not_measured:
        caption += " Not measured, since one label only would be left: " + ", ".join(
            f"{a} with {b}" for a, b in h.not_measured
        )
    name = f"{what}-{'probe' if 'probe' in h.reader else 'gate'}"
    table = Table(name, caption, _head(*HALVES[what], "left out", "fitted to"), rows, 2, compact=True)
    return folded(table, f"{what}, {h.reader}: every pair")


def _directions(found: Findings) -> Section:
    head = [
        word("direction"),
        word("cosine", "with the reconstruction's"),
        word("length kept"),
        word("variance kept", "along it, over rows"),
        word("nearest feature", "cosine"),
        *(word(f"{n} row{'s' if n > 1 else ''}", "span of it; random") for n in found.directions[0].spanned),
    ]
    rows = []
    for d in found.directions:
        row = [word(d.name, f"{d.about}; n = {d.toward} + {d.away}"), _number(d.cosine, 3)]
        row += [
            _percent(d.kept),
            _percent(d.explained),
            Cell(_signed(d.nearest), f"feature {d.feature}", figure=Figure(d.nearest)),
        ]
        row += [Cell(percent(s), percent(d.spanned_random[n]), figure=Figure(s)) for n, s in d.spanned.items()]
        rows.append(row)
    about = (
        "A difference of means of the stream, against that of its reconstruction from the features that are active. Span: "
        "the squared length that so many decoder rows, sought greedily, make up; beneath, of random directions. What an SAE "
        "does not reconstruct, no gate can read and no clamp can write."
    )
    chart = draw(sae_plots.spans(found.directions), "Share of each direction in the span of decoder rows.")
    names = [d.name for d in found.directions]
    drawings = Drawings(
        [Drawing(chart, "In the span of a few decoder rows")],
        [(f"direction of {n}", sae_plots.COLOURS[n]) for n in names] + [("random", sae_plots.COLOURS["random"])],
    )
    table = Table("directions", "Directions, and what the SAE makes of them.", head, rows)
    return Section("directions", "The directions of harm and of refusal", about, [drawings, table], "Directions")


def _facts(found: Findings, folder: Path) -> list[tuple[str, str]]:
    c, manifest = found.config, read_json(folder / runs.MANIFEST) if (folder / runs.MANIFEST).is_file() else {}
    versions = manifest.get("versions", {})
    facts = [
        ("SAE", f"{found.name}, hash {found.hash}, format {found.format}"),
        ("rule", f"{c.rule}, k = {c.k}" if c.k else c.rule),
        ("width", f"{c.d_model} to {c.d_sae}"),
        ("model", f"{c.model} {c.model_hash}".strip()),
        ("site", c.site),
        ("text", found.text.about),
        ("prompts", found.harm.rows),
        ("replies", found.refusal.rows),
        ("command", str(manifest.get("command", ""))),
        ("machine", str(manifest.get("machine", ""))),
        ("versions", ", ".join(f"{name} {v}" for name, v in versions.items())),
    ]
    return [(name, clean(value)) for name, value in facts if value]


# --- cells -----------------------------------------------------------------------------------------------------------


def _head(*names: str) -> list[Cell]:
    return [word(name) for name in names]


def _number(value: float, digits: int, n: int | None = None) -> Cell:
    return Cell(f"{value:.{digits}f}", figure=Figure(value, n=n))


def _percent(share: float) -> Cell:
    return Cell(percent(share), figure=Figure(share))


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _count(share: float, density: np.ndarray) -> Cell:
    n = round(share * len(density))
    return Cell(str(n), figure=Figure(n))


def _median(alive: Sequence[float] | np.ndarray) -> float:
    return float(np.median(alive)) if len(alive) else 0.0


def _small(alive: np.ndarray) -> str:
    return f"{100 * _median(alive):.2g} %"


def _area(area: Area) -> Cell:
    figure = Figure(area.area, area.low, area.high, area.harmful + area.benign)
    return Cell(f"{area.area:.3f}", f"[{area.low:.3f}, {area.high:.3f}]", figure=figure)
