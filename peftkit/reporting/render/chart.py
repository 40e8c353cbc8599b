"""Charts of a report: what one is, and the registry of them.

A chart is one function, in this package or in a plug-in, that takes a report:

    @chart("score_by_steps")
    def score_by_steps(report: ReportData) -> Chart | None:
        rows = [{"label": s.label, "steps": s.steps, "score": s.mean} for s in report.strategies]
        points = alt.Chart(alt.NamedData("rows")).mark_point().encode(x="steps:Q", y="score:Q")
        return Chart("Score by steps", "A point for each strategy.", points, rows,
                     {"strategy": "label", "steps": "steps", "score": "score"})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peftkit.errors import Fault, RecipeError
from peftkit.registry import import_declarations, import_plugins
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.runs.learning_curves import INK, printable

if TYPE_CHECKING:
    import altair

    Drawing = altair.LayerChart | altair.FacetChart | altair.Chart

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
"""Okabe and Ito's colors on white; shapes, dashes or words always make the same distinction."""
CATEGORIES = ("c1", "c2", "c3", "c4", "c5", "c6")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [12, 4], [4, 2, 1, 2])
MOST_LINES = len(CATEGORIES)
COLUMNS = 3
"""Small multiples in a row."""


@dataclass(frozen=True)
class Chart:
    """One chart: its specification, its data, and its words."""

    title: str
    caption: str
    drawing: Drawing
    """An Altair chart whose data is named 'rows'."""
    rows: list[Row]
    """Rows with an `n`, the number of a strategy in the report (and an `m`, of a second one), are
    hidden together with that strategy."""
    columns: dict[str, str]
    """Headings of the table below the chart, with the keys in `rows`."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on what was left out."""
    name: str = ""
    """The name that it is registered by; that of its file, without the ending."""

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The Vega-Lite specification without data and theme (cached: Altair validates slowly)."""
        found: dict[str, Any] = self.drawing.to_dict()
        found.pop("config", None)
        return found

    def specification(self, color: Callable[[str], str]) -> dict[str, Any]:
        """The Vega-Lite specification with its data; `color` gives a color by its name."""
        themed = {"description": f"{self.title}. {self.caption}", "config": theme(color)}
        return {**self.plain, **themed, "datasets": {"rows": self.rows}}

    def svg(self) -> str:
        """The chart with its title, as an SVG file."""
        import vl_convert

        heading = {"text": self.title, "anchor": "start", "fontSize": 15, "offset": 12}
        specification = {**self.specification(COLORS.__getitem__), "title": heading, "padding": 12}
        return str(vl_convert.vegalite_to_svg(json.dumps(specification)))


ChartFunction = Callable[[ReportData], "Chart | None"]


@dataclass(frozen=True)
class RegisteredChart:
    """A chart in the registry."""

    function: ChartFunction
    missing: str
    """The sentence of a report that lacks its data."""


CHARTS: dict[str, RegisteredChart] = {}
"""Every registered chart by name, in the order of the page."""


def chart(name: str, missing: str = "") -> Callable[[ChartFunction], ChartFunction]:
    """Register a function that draws a report's chart, or returns None if the data is missing.

    Raises `RecipeError` if another chart has the same name, or it is no identifier.
    """

    def register(function: ChartFunction) -> ChartFunction:
        if not name.isidentifier():
            what = f"{name!r} is no name for a file - use letters, digits and underscores"
            raise RecipeError("", [Fault("charts", what)])
        known = CHARTS.setdefault(name, RegisteredChart(function, missing)).function
        names = {f"{each.__module__}.{each.__qualname__}" for each in (known, function)}
        if len(names) > 1:
            both = " and ".join(sorted(names))
            what = f"{both} are both called {name!r} - rename one"
            raise RecipeError("a name is used twice:", [Fault("charts", what)])
        return function

    return register


def registered_charts() -> dict[str, RegisteredChart]:
    """All charts by name: the built-in ones and those of plug-ins."""
    import_declarations("peftkit.reporting.render.charts")
    import_plugins()
    return CHARTS


def draw_charts(report: ReportData) -> list[Chart]:
    """All charts that the report has data for."""
    charts = {name: each.function(report) for name, each in registered_charts().items()}
    return [replace(found, name=name) for name, found in charts.items() if found is not None]


def missing_charts(charts: Sequence[Chart]) -> list[str]:
    """A sentence for each chart that the report has no data for."""
    names = {each.name for each in charts}
    absent = (each for name, each in registered_charts().items() if name not in names)
    return [each.missing for each in absent if each.missing]


def theme(color: Callable[[str], str]) -> dict[str, Any]:
    """The Vega-Lite configuration that all charts share."""
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


def numbers(report: ReportData) -> dict[str, int]:
    """The number of each strategy in the report, by label."""
    return {summary.label: place for place, summary in enumerate(report.strategies)}


def first_strategies(
    labels: Sequence[str], report: ReportData, most: int
) -> tuple[list[str], list[str]]:
    """The best strategies, at most `most` of them, and a remark if others are left out."""
    order = numbers(report)
    found = sorted((label for label in labels if label in order), key=order.__getitem__)
    if len(found) <= most:
        return found, []
    return found[:most], [f"Only the best {most} strategies by mean are shown."]


def replicates(report: ReportData) -> str:
    """'seeds', or 'folds' in a cross-validation."""
    return "seeds" if report.folds is None else "folds"


def printable_label(label: str) -> str:
    """A strategy's name on one line, without control characters."""
    return printable(" ".join(label.split()))


def rounded(value: float | None) -> float | None:
    """A number with five digits, which halves the size of a page with many."""
    return None if value is None else float(f"{value:.5g}")


def printable_labels(labels: Sequence[str]) -> list[str]:
    """Names of strategies as charts write them, in the report's order."""
    return [printable_label(label) for label in labels]


def axis_ends(values: Sequence[float], metric: str) -> list[float]:
    """The ends of a score's axis: the values with a margin, but no values that the metric cannot
    have (an accuracy axis ends at 1)."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return list(Scale(metric).within_range(low - room, high + room))


def faceted(plots: Drawing, labels: Sequence[str]) -> Drawing:
    """Small multiples: a plot for each strategy, in the report's order."""
    import altair as alt

    named = alt.Facet("label:N", title=None, sort=list(labels), header=alt.Header(labelFontSize=12))
    plots_by_label: Drawing = alt.FacetChart(
        data=alt.NamedData(name="rows"), spec=plots, facet=named, columns=COLUMNS
    ).resolve_axis(x="independent")
    return plots_by_label
