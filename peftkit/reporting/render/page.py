"""A report as one HTML file that opens from disk and needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from peftkit.reporting.render.chart import COLORS, Chart, missing_charts
from peftkit.reporting.render.columns import Column, method, table_of
from peftkit.reporting.render.markdown import lists_of
from peftkit.reporting.render.vega import bundle
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    from jinja2 import Template

    from peftkit.reporting.analysis.disagreement import DisputedRow
    from peftkit.reporting.analysis.results import ReportData
    from peftkit.reporting.analysis.summaries import StrategySummary

LIGHT = {**COLORS, "shade": "#f2f5f8", "edge": "#767676", "quiet": "#595959"}
DARK = {
    "ink": "#e8e8e8",
    "paper": "#16181c",
    "grid": "#3a3f47",
    "shade": "#20242b",
    "edge": "#8a8f98",
    "quiet": "#a9aeb7",
    "c1": COLORS["c6"],
    "c2": COLORS["c5"],
    "c5": "#F0E442",
    "c6": COLORS["c1"],
}
"""What dark mode changes: of the same eight colors, the bright ones come first."""
HTML_CHARACTERS: dict[str, str | int | None] = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def page(report: ReportData, charts: Sequence[Chart]) -> str:
    """The whole page."""
    style, script, vega = stylesheet(), part("page.js"), bundle()
    return template().render(
        report=report,
        charts=charts,
        table=table_of(report),
        kinds=sorted({each.strategy for each in report.strategies}),
        stored=sorted({each.quantization for each in report.strategies}),
        missing=missing_charts(charts),
        lists=lists_of(report),
        method=method(report),
        number=number,
        predictions=predictions,
        sort_key=sort_key,
        data=safe_json([{"name": c.name, "specification": c.specification(css)} for c in charts]),
        policy=policy([vega, script], style),
        style=style,
        script=script,
        vega=vega,
    )


@cache
def template() -> Template:
    """The page's template; every text in it is escaped and printable."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, finalize=clean)
    return environment.from_string(part("page.html"))


def clean(value: Any) -> Any:
    """Text on one line without control characters; markup that is safe stays as it is."""
    return printable(" ".join(value.split())) if type(value) is str else value


def part(name: str) -> str:
    """A part of the page, from the file next to this module."""
    return files("peftkit.reporting.render").joinpath(name).read_text(encoding="utf-8")


def css(color: str) -> str:
    """A color of the style sheet, so that charts follow it into dark mode."""
    return f"var(--{color})"


def stylesheet() -> str:
    """The style sheet, with both sets of colors; print is always light."""
    light, dark = (
        "".join(f"--{name}: {value}; " for name, value in colors.items())
        for colors in (LIGHT, DARK)
    )
    mode = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"
    return f":root {{ {light}}}\n{mode}\n{part('page.css')}"


def policy(scripts: Iterable[str], style: str) -> str:
    """The Content-Security-Policy: only the page's own scripts and style, by their hashes.

    No script that a name might inject is run, and nothing is loaded, sent or evaluated.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(map(digest, scripts)),
        "style-src": digest(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def digest(content: str) -> str:
    """The source expression of an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def safe_json(value: Any) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(str.maketrans(HTML_CHARACTERS))


def sort_key(column: Column, summary: StrategySummary) -> str:
    """What a cell is sorted by; empty if unknown."""
    if column.value is None:
        return column.text(summary)
    value = column.value(summary)
    return "" if value is None else repr(value)


def number(value: object) -> str:
    """A chart's value as text; unknown is empty."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.5g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def predictions(row: DisputedRow) -> str:
    """The most frequent predictions of a row, with their shares."""
    answers = sorted(row.answers.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in answers[:4])
