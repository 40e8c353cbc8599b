"""Rendering: a report as Markdown and CSV, with names that can harm neither page nor sheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import Measure, Standing
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    from peftkit.reporting.analysis.results import ReportData

Cell = Callable[[Standing], str]
Value = Callable[[Standing], "float | None"]
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKED = frozenset("\\`*[]|~!")
FRONT = {"front": "on", "open": "open", "behind": "behind"}


def escaped(text: str) -> str:
    """`text` for Markdown: no mark-up, no HTML, no control characters, on one line."""
    one_line = printable(" ".join(text.split()))
    letters = (ENTITIES.get(c, f"\\{c}" if c in MARKED else c) for c in one_line)
    return "".join(letters)


def cell(text: str) -> str:
    """`text` for a sheet: what a program would take for a formula becomes a text."""
    clean = printable(" ".join(text.split()))
    return f"'{clean}" if clean.startswith(("=", "+", "-", "@")) else clean


def markdown(report: ReportData) -> str:
    """The whole report as a Markdown page."""
    first, *others = map(escaped, report.verdict)
    parts = [
        f"# {escaped(report.title)}\n",
        f"**{first}**\n",
        "\n".join(f"- {line}" for line in others),
        table(report),
        explained(report),
        section("Runs without a score", failures(report)),
        section("Not read", [f"{f.where}: {f.what}" for f in report.unread]),
        section("Mixed, as --allow-mixed allows", report.mixed),
        section("Notes", report.notes),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def section(title: str, lines: Sequence[str]) -> str:
    """A list under a heading; nothing where there are no lines."""
    items = "".join(f"- {escaped(line)}\n" for line in lines)
    return f"\n## {title}\n\n{items}" if items else ""


def failures(report: ReportData) -> list[str]:
    """A line a run that has no score."""
    return [
        f"{each.label}, {failure.turn}: {failure.status} ({failure.run}: {failure.reason})"
        for each in report.standings
        for failure in each.failures
    ]


class Column(NamedTuple):
    """A column of the table."""

    head: str
    text: Cell
    value: Value | None = None
    """What it is ordered by, where that is a number."""
    named: bool = False
    """Whether head or cells hold names, which could harm a page."""


def columns(report: ReportData) -> list[Column]:
    """The table's columns as plain text."""
    found = [
        Column(
            "strategy",
            lambda s: s.label + (" (reference)" * (s.label == report.reference)),
            named=True,
        ),
        Column(
            "base held", lambda s: "" if s.quantization == "none" else s.quantization, named=True
        ),
        Column(
            "trainable",
            lambda s: "" if s.trainable is None else f"{s.trainable:,}",
            lambda s: s.trainable,
        ),
        Column("share", lambda s: "" if s.share is None else f"{s.share:.2%}", lambda s: s.share),
        cost("artifact MiB", "artifact_bytes", 2**20, ".2f"),
        cost("peak MiB", "peak_bytes", 2**20),
        cost("peak MiB, evaluation", "peak_evaluate_bytes", 2**20),
        cost("tokens/s", "tokens_per_second"),
        cost("train s", "train_seconds"),
        cost("s to reference", "seconds_to_reference")._replace(text=reached),
        Column(f"{report.metric}, mean ± sd", score, lambda s: s.mean, named=True),
        Column(
            "seeds" if report.folds is None else "folds",
            lambda s: str(len(s.seeds)) if s.seeds else s.status,
            lambda s: len(s.seeds),
            named=True,
        ),
        *compared_columns(),
    ]
    if report.mixed:
        found.append(Column("mixed", lambda s: ", ".join(s.mixed), named=True))
    return found


def compared_columns() -> list[Column]:
    """The columns for which other strategies are needed."""
    return [
        Column(
            "difference [95 %]",
            difference,
            lambda s: None if s.difference is None else s.difference.value,
        ),
        Column(
            "p, Holm",
            lambda s: "" if s.difference is None else f"{s.difference.p_corrected:.3g}",
            lambda s: None if s.difference is None else s.difference.p_corrected,
        ),
        Column(
            "could have shown",
            lambda s: "" if s.difference is None else f"{s.difference.detectable:.4f}",
            lambda s: None if s.difference is None else s.difference.detectable,
        ),
        Column("group", lambda s: s.groups),
        Column("front: weights", lambda s: FRONT.get(s.front.get("trainable", ""), "")),
        Column("front: memory", lambda s: FRONT.get(s.front.get("peak_bytes", ""), "")),
        Column("front: time", lambda s: FRONT.get(s.front.get("train_seconds", ""), "")),
    ]


def cost(head: str, name: str, unit: float = 1, form: str = ",.0f") -> Column:
    """The column of a cost's median."""

    def value(standing: Standing) -> float | None:
        found = standing.measures.get(name)
        return None if found is None else found.median

    return Column(head, lambda s: median(s.measures.get(name), unit, form), value)


def median(found: Measure | None, unit: float, form: str) -> str:
    """A cost's median; empty where it is unknown."""
    return "" if found is None else format(found.median / unit, form)


def reached(standing: Standing) -> str:
    """Seconds to the reference's validation score, or how many seeds got there."""
    if standing.reached is None:
        return ""
    found = median(standing.measures["seconds_to_reference"], 1, ",.0f")
    return f"{found} ({standing.reached} seeds)" if found else "not reached"


def score(standing: Standing) -> str:
    """The mean with its deviation."""
    if standing.mean is None:
        return ""
    spread = "" if standing.deviation is None else f" ± {standing.deviation:.4f}"
    return f"{standing.mean:.4f}{spread}"


def difference(standing: Standing) -> str:
    """The difference to the reference with its interval."""
    found = standing.difference
    if found is None:
        return ""
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


class Cells(NamedTuple):
    """The table's columns that hold something, and the others' heads."""

    columns: list[Column]
    rows: list[list[str]]
    empty: list[str]


def cells(report: ReportData) -> Cells:
    """The table as plain text: a row a strategy, answers without training last."""
    every = columns(report)
    rows = [[column.text(each) for column in every] for each in report.standings]
    kept = [i for i, _ in enumerate(every) if any(row[i] for row in rows)]
    shown = [every[i] for i in kept]
    rows = [[row[i] for i in kept] for row in rows]
    for name, value in report.baselines.items():
        known = {shown[0].head: name, "trainable": "0"}
        said = "undefined" if value is None else f"{value:.4f}"
        rows.append([known.get(c.head, said if "mean ±" in c.head else "") for c in shown])
    empty = [c.head for i, c in enumerate(every) if i not in kept and c.head != "base held"]
    return Cells(shown, rows, empty)


def table(report: ReportData) -> str:
    """The Markdown table; empty columns left out."""
    found = cells(report)

    def line(texts: Iterable[str]) -> str:
        pairs = zip(found.columns, texts, strict=True)
        return f"| {' | '.join(escaped(t) if column.named else t for column, t in pairs)} |"

    heads = line(column.head for column in found.columns)
    lines = [heads, "|---" * len(found.columns) + "|", *map(line, found.rows)]
    empty = f"\nNo record holds: {', '.join(map(escaped, found.empty))}.\n" if found.empty else ""
    return "\n" + "\n".join(lines) + "\n" + empty


def explained(report: ReportData) -> str:
    """What the table's columns mean, for Markdown."""
    return "\n" + "\n\n".join(map(escaped, explanations(report))) + "\n"


def explanations(report: ReportData) -> list[str]:
    """What the table's columns mean."""
    count = sum(each.difference is not None for each in report.standings)
    lines = [
        f"{report.metric} on {report.rows:,} test rows; costs are medians over seeds, and "
        "seconds are those of optimizer steps. Peak memory is the training's, its validation too; "
        "evaluation's is that of scoring the test split."
        + (f" Less {report.metric} is better." if Scale(report.metric).lower else "")
    ]
    if count:
        lines.append(
            f"Difference: paired, to {report.reference}, {noise(report)}. p is corrected by Holm "
            f"over all {len(report.pairs)} pairs, half of the errors being allotted to the {count} "
            "with the reference; groups are by the same p: ties alone would tell some two apart in "
            "at most 5 % of reports. Could have shown: the true difference found in 80 % of cases, "
            "after correction."
        )
        lines.append(
            "Front: on - no strategy has both a better mean and a lower cost; behind - one that is "
            "significantly better is surely no dearer; open - these runs cannot tell."
        )
    return lines


def noise(report: ReportData) -> str:
    """What differences are paired by, and what is taken to vary."""
    if report.folds is None:
        return (
            "same rows and seeds; both vary in the interval and in p (seeds and rows crossed: "
            "Student's t for the seeds' part, the normal for the rows')"
        )
    return (
        f"same folds of {report.folds}. Folds share most of the rows that they learn from, so that "
        "their scores resemble each other: the mean's variance is taken to be (1/folds + test "
        "rows/other rows) times the folds' own, not 1/folds times, in the interval and in p, with "
        "Student's t on folds - 1 degrees of freedom (Nadeau and Bengio 2003)"
    )


MEASURES = (
    "artifact_bytes",
    "peak_bytes",
    "peak_evaluate_bytes",
    "tokens_per_second",
    "train_seconds",
    "total_seconds",
    "seconds_to_reference",
)
DIFFERENCE = ("value", "low", "high", "p", "p_corrected", "detectable", "rows")


def sheet(report: ReportData) -> str:
    """The standings as CSV; unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    first = ["label", "strategy", "quantization", "status", "trainable", "total"]
    rest = ["mean", "deviation", "low", "high", "groups"]
    heads = [*first, *MEASURES, "seeds", "failures", *rest]
    heads += [f"difference_{name}" for name in DIFFERENCE]
    writer.writerow([*heads, "front_trainable", "front_memory", "front_time", "settings", "mixed"])
    for each in report.standings:
        measures = [each.measures.get(name) for name in MEASURES]
        found = each.difference
        values: list[object] = [
            *(getattr(each, name) for name in first),
            *(m.median if m else None for m in measures),
            " ".join(map(str, each.seeds)),
            len(each.failures),
            *(getattr(each, name) for name in rest),
            *(getattr(found, name) if found else None for name in DIFFERENCE),
            *(each.front.get(axis) for axis in ("trainable", "peak_bytes", "train_seconds")),
            json.dumps(each.settings),
            "; ".join(each.mixed),
        ]
        writer.writerow([cell(v) if isinstance(v, str) else v for v in values])
    return out.getvalue()
