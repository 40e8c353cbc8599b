"""Charts: a report's pictures, one specification each for the page, SVG and PNG."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peftkit.runs.learning_curves import INK, printable

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.analysis.results import ReportData

    Drawing = altair.LayerChart | altair.FacetChart

Row = dict[str, Any]

COLORS = {
    "ink": "#1b1b1b",
    "paper": "#ffffff",
    "grid": "#dddddd",
    **{f"c{n}": color for n, color in enumerate(INK.values(), 1)},
    "c3": "#009E73",
    "c4": "#CC79A7",
    "c5": "#E69F00",
    "c6": "#56B4E9",
}
"""Okabe and Ito's colors on white; what they tell apart, shapes, dashes or words do too."""
CATEGORIES = ("c1", "c2", "c3", "c4", "c5", "c6")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [12, 4], [4, 2, 1, 2])
MOST_LINES = len(CATEGORIES)
COLUMNS = 3
"""Small plots side by side."""


@dataclass(frozen=True)
class Picture:
    """One picture: how it is drawn, of what, and what it says in words."""

    name: str
    """Its file's, without an ending."""
    title: str
    caption: str
    chart: Drawing
    """Draws the data that are called 'rows'."""
    rows: list[Row]
    """`n` is the number of a row's strategy in the report, `m` that of a second one."""
    columns: dict[str, str]
    """Headings of the picture's numbers as a table, and the rows' keys."""
    words: list[str] = field(default_factory=list)
    """What was left out."""

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The specification without data and looks; Altair takes its time to check it."""
        found: dict[str, Any] = self.chart.to_dict()
        found.pop("config", None)
        return found

    def specification(self, color: Callable[[str], str]) -> dict[str, Any]:
        """The Vega-Lite specification, in colors by their names, with its data."""
        said = {"description": f"{self.title}. {self.caption}", "config": theme(color)}
        return {**self.plain, **said, "datasets": {"rows": self.rows}}

    def alone(self) -> str:
        """The specification of the picture by itself, with its title, as one line of JSON."""
        heading = {"text": self.title, "anchor": "start", "fontSize": 15, "offset": 12}
        drawn = {**self.specification(COLORS.__getitem__), "title": heading, "padding": 12}
        return json.dumps(drawn)


def theme(color: Callable[[str], str]) -> dict[str, Any]:
    """Everything about looks that is the same in all pictures."""
    ink, grid = color("ink"), color("grid")
    titles = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    lines = {"domainColor": ink, "tickColor": ink, "gridColor": grid}
    return {
        "background": color("paper"),
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {**titles, **lines, "titleFontWeight": "normal", "titlePadding": 8},
        "legend": {
            **titles,
            "orient": "top",
            "symbolFillColor": ink,
            "titleFontWeight": "normal",
            "titleOrient": "left",
            "columns": 3,
            "labelLimit": 240,
        },
        "header": {**titles, "labelLimit": 200},
        "title": {"color": ink, "subtitleColor": ink, "limit": 600},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": ink},
        "mark": {"color": color("c1")},
        "range": {"category": [color(name) for name in CATEGORIES]},
    }


def png(svg: str) -> bytes:
    """An SVG as a PNG at twice its size."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=2))


def numbers(report: ReportData) -> dict[str, int]:
    """The number of each strategy by its label."""
    return {standing.label: place for place, standing in enumerate(report.standings)}


def kept(labels: Sequence[str], report: ReportData, most: int) -> tuple[list[str], list[str]]:
    """The first strategies of the report, at most so many, and a word about those left out."""
    order = numbers(report)
    found = sorted((label for label in labels if label in order), key=order.__getitem__)
    if len(found) <= most:
        return found, []
    return found[:most], [f"Only the best {most} strategies by their mean are shown."]


def turns(report: ReportData) -> str:
    """What the runs of a strategy are told apart by."""
    return "seeds" if report.folds is None else "folds"


def shown_label(label: str) -> str:
    """A strategy's name as a picture can hold it."""
    return printable(" ".join(label.split()))


def rounded(value: float | None) -> float | None:
    """A number as exactly as a picture shows it: a page of many is half as large."""
    return None if value is None else float(f"{value:.5g}")


def order_of(labels: Sequence[str]) -> list[str]:
    """Strategies as a picture names them, in the report's order."""
    return [shown_label(label) for label in labels]


def faceted(plots: Drawing, labels: Sequence[str]) -> Drawing:
    """A small plot a strategy, in the report's order."""
    import altair as alt

    named = alt.Facet("label:N", title=None, sort=list(labels), header=alt.Header(labelFontSize=12))
    plots_by_label: Drawing = alt.FacetChart(
        data=alt.NamedData(name="rows"), spec=plots, facet=named, columns=COLUMNS
    ).resolve_axis(x="independent")
    return plots_by_label
