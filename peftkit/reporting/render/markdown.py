"""A report as Markdown and CSV; names cannot inject markup or spreadsheet formulas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftkit.reporting.render.columns import Column, method, table_of
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    from peftkit.reporting.analysis.results import ReportData

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKUP = frozenset("\\`*[]|~!")


def escaped(text: str) -> str:
    """`text` for Markdown: no markup, no HTML, no control characters, on one line."""
    one_line = printable(" ".join(text.split()))
    letters = (ENTITIES.get(c, f"\\{c}" if c in MARKUP else c) for c in one_line)
    return "".join(letters)


def cell(text: str) -> str:
    """`text` for a spreadsheet, where it could be read as a formula."""
    clean = printable(" ".join(text.split()))
    return f"'{clean}" if clean.startswith(("=", "+", "-", "@")) else clean


def markdown(report: ReportData) -> str:
    """The whole report as a Markdown page."""
    headline, *others = map(escaped, report.verdict)
    parts = [
        f"# {escaped(report.title)}\n",
        f"**{headline}**\n",
        "\n".join(f"- {line}" for line in others),
        table(report),
        *(section(title, lines) for title, lines in lists_of(report).items()),
        explanations(report),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def section(title: str, lines: Sequence[str]) -> str:
    """A list under a heading; nothing without lines."""
    items = "".join(f"- {escaped(line)}\n" for line in lines)
    return f"\n## {title}\n\n{items}" if items else ""


def lists_of(report: ReportData) -> dict[str, list[str]]:
    """Failed runs, unreadable records, mixed facts and notes, each under a heading."""
    return {
        "Runs without a score": failures(report),
        "Not read": [f"{fault.where}: {fault.what}" for fault in report.unread],
        "Mixed, as --allow-mixed allows": report.mixed,
        "Notes": report.notes,
    }


def failures(report: ReportData) -> list[str]:
    """A line for each run without a score."""
    return [
        f"{each.label}, {failure.replicate}: {failure.status} ({failure.run}: {failure.reason})"
        for each in report.strategies
        for failure in each.failures
    ]


def table(report: ReportData) -> str:
    """The main columns as a Markdown table, and the others as a second one."""
    found = table_of(report)
    empty = f"\nNot recorded: {', '.join(map(escaped, found.empty))}.\n" if found.empty else ""
    more = grid(*found.part(is_main=False))
    return f"\n{grid(*found.part(is_main=True))}\n### More columns\n\n{more}{empty}"


def grid(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Columns and rows as a Markdown table."""

    def line(texts: Iterable[str]) -> str:
        return f"| {' | '.join(map(escaped, texts))} |\n"

    heads = line(column.head for column in columns)
    return heads + "|---" * len(columns) + "|\n" + "".join(map(line, rows))


def explanations(report: ReportData) -> str:
    """The meaning of each column, and how intervals and p-values are computed."""
    lines = [f"- **{escaped(c.head)}**: {escaped(c.explanation)}" for c in table_of(report).columns]
    paragraphs = "\n\n".join(map(escaped, method(report)))
    return "\n## How to read this\n\n" + "\n".join(lines) + f"\n\n{paragraphs}\n"


MEASURES = (
    "artifact_bytes",
    "peak_bytes",
    "peak_evaluate_bytes",
    "tokens_per_second",
    "train_seconds",
    "total_seconds",
    "seconds_to_reference",
)
DIFFERENCE = (
    *("value", "low", "high", "joint_low", "joint_high"),
    *("p", "p_corrected", "minimum_detectable", "rows"),
)


def csv_table(report: ReportData) -> str:
    """The strategies as CSV; unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    first = ["label", "strategy", "quantization", "status", "trainable", "total"]
    rest = ["mean", "deviation", "low", "high", "groups"]
    heads = [*first, *MEASURES, "seeds", "failures", *rest]
    heads += [f"difference_{name}" for name in DIFFERENCE]
    writer.writerow(
        [*heads, "pareto_trainable", "pareto_memory", "pareto_time", "settings", "mixed"]
    )
    for each in report.strategies:
        measures = [each.measures.get(name) for name in MEASURES]
        found = each.difference
        values: list[object] = [
            *(getattr(each, name) for name in first),
            *(m.median if m else None for m in measures),
            " ".join(map(str, each.seeds)),
            len(each.failures),
            *(getattr(each, name) for name in rest),
            *(getattr(found, name) if found else None for name in DIFFERENCE),
            *(each.pareto.get(axis) for axis in ("trainable", "peak_bytes", "train_seconds")),
            json.dumps(each.settings),
            "; ".join(each.mixed),
        ]
        writer.writerow([cell(v) if isinstance(v, str) else v for v in values])
    return out.getvalue()
