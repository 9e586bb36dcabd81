"""A chart as a still drawing for the page: no script, colours from the page's style, tooltips from SVG titles.

Drawings rather than live charts, because the page quotes hostile text: with no script of its own it can forbid all
scripts. It also opens at once, prints, and reads with the data tables beside each figure.
"""

import io
from xml.etree import ElementTree

from markupsafe import Markup

from demur.reports.plots import Chart
from demur.reports.words import clean


def draw(chart: Chart, label: str) -> Markup:
    """The chart as an `<svg>` element to put into HTML."""
    buffer = io.StringIO()
    styled(chart).save(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rsplit("}", 1)[-1]
        said = element.attrib.pop("aria-label", "")
        mark = element.attrib.pop("role", "") == "graphics-symbol"
        element.attrib.pop("aria-roledescription", None)
        if mark and said and element.tag in ("path", "line"):
            ElementTree.SubElement(element, "title").text = said
    width, height = root.attrib["width"], root.attrib["height"]
    root.attrib.clear()
    root.attrib |= {
        "class": "chart",
        "role": "img",
        "aria-label": clean(label),
        "viewBox": f"0 0 {width} {height}",
        "style": f"max-width:{width}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def styled(chart: Chart) -> Chart:
    """The page's typography and colours; `var(…)` is resolved by the browser, for light and dark."""
    return (
        chart.configure(
            background="transparent", font="sans-serif", padding={"left": 2, "top": 4, "right": 16, "bottom": 2}
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="var(--soft)",
            titleColor="var(--soft)",
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
            labelLimit=220,
            gridColor="var(--line)",
            domainColor="var(--line)",
            tickColor="var(--line)",
        )
        .configure_text(color="var(--ink)", fontSize=12)
    )
