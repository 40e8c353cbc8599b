"""The columns of a report's table: heading, explanation, and the text and value of each cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from peftkit.metrics.registry import find_metric
from peftkit.reporting.analysis.differences import INTERVAL, SIMULTANEOUS
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import Difference, Measure, StrategySummary

Text = Callable[[StrategySummary], str]
Value = Callable[[StrategySummary], "float | None"]
PARETO_MEANING = (
    "Pareto-optimal: no strategy has both a better mean and a lower cost; dominated: a "
    "significantly better strategy surely costs no more; inconclusive: these runs cannot show "
    "which."
)


class Column(NamedTuple):
    """A column of the table of strategies."""

    head: str
    explanation: str
    text: Text
    value: Value | None = None
    """What it is sorted by, if that is a number."""
    is_main: bool = False
    """Whether it is one of the first eight; the others are behind a button."""


def columns_of(report: ReportData) -> list[Column]:
    """All columns, the main ones first."""
    return [*main_columns(report), *cost_columns(report), *statistics_columns(report)]


def main_columns(report: ReportData) -> list[Column]:
    """The eight columns that are shown at first."""
    scale, metric = Scale(report.metric), report.metric
    about = find_metric(metric).description
    direction = "less" if scale.lower else "more"
    seeds = "seeds" if report.folds is None else "folds"
    main = [
        Column(
            "strategy",
            "Label of the strategy, with the settings that tell it from others of its kind.",
            lambda s: s.label + (" (reference)" * (s.label == report.reference)),
        ),
        Column(
            f"{metric}, mean ± sd",
            f"Mean and standard deviation over {seeds} of {metric}"
            f"{f' ({about})' if about else ''} on {report.rows:,} test rows; {direction} is "
            "better.",
            score,
            lambda s: s.mean,
        ),
        Column(
            f"difference, {scale.unit.strip()} [{SIMULTANEOUS}]",
            f"Mean score less that of {report.reference}, on the same rows and {seeds}, with the "
            "interval that holds for all comparisons with the reference at once in 95 % of cases "
            "(Bonferroni).",
            lambda s: interval(s.difference, scale, "joint_low", "joint_high"),
            lambda s: None if s.difference is None else s.difference.value,
        ),
        Column(
            "share of weights",
            "Trainable weights as a share of all weights.",
            lambda s: "" if s.share is None else f"{s.share:.2%}",
            lambda s: s.share,
        ),
        cost("train s", "Seconds of all optimizer steps (median).", "train_seconds"),
        cost("peak MiB", "Peak memory of training and validation (median).", "peak_bytes", 2**20),
        cost("artifact MiB", "Size on disk (median).", "artifact_bytes", 2**20, ".2f"),
        Column(
            seeds,
            f"Number of {seeds} with a score, or what happened to a strategy without one.",
            lambda s: str(len(s.seeds)) if s.seeds else s.status,
            lambda s: len(s.seeds),
        ),
    ]
    return [column._replace(is_main=True) for column in main]


def cost_columns(report: ReportData) -> list[Column]:
    """The other costs."""
    found = [
        Column(
            "base stored in",
            "Storage format of the frozen base model, if it is quantized.",
            lambda s: "" if s.quantization == "none" else s.quantization,
        ),
        Column(
            "trainable",
            "Number of trainable weights.",
            lambda s: "" if s.trainable is None else f"{s.trainable:,}",
            lambda s: s.trainable,
        ),
        cost("eval peak MiB", "Peak memory of scoring the test split (median).",
             "peak_evaluate_bytes", 2**20),
        cost("tokens/s", "Training tokens per second (median).", "tokens_per_second"),
        cost(
            "s to reference",
            "Training seconds to the validation score of the reference (median), and how many "
            "seeds reached it.",
            "seconds_to_reference",
        )._replace(text=reached),
    ]  # fmt: skip
    if report.mixed:
        about = "Facts other than the strategy in which its runs differ from the reference's."
        found.append(Column("mixed", about, lambda s: ", ".join(s.mixed)))
    return found


def statistics_columns(report: ReportData) -> list[Column]:
    """What a statistician looks up."""
    scale = Scale(report.metric)
    unit = scale.unit.strip()
    return [
        Column(
            f"{INTERVAL} of the difference",
            "The same difference, with the interval that holds for this comparison alone in 95 % "
            "of cases.",
            lambda s: interval(s.difference, scale, "low", "high"),
            lambda s: None if s.difference is None else s.difference.value,
        ),
        Column(
            "p (Holm)",
            "p-value of the difference, corrected for the number of all pairs (Holm).",
            lambda s: "" if s.difference is None else f"{s.difference.p_corrected:.3g}",
            lambda s: None if s.difference is None else s.difference.p_corrected,
        ),
        Column(
            f"minimum detectable difference, {unit}",
            "The true difference that these seeds and rows detect with 80 % power, after "
            "correction.",
            lambda s: (
                ""
                if s.difference is None
                else scale.describe(s.difference.minimum_detectable, signed=False)
            ),
            lambda s: None if s.difference is None else s.difference.minimum_detectable,
        ),
        Column(
            "group",
            "Strategies that share a letter do not differ significantly (compact letter display).",
            lambda s: s.groups,
        ),
        Column("Pareto", f"Status by cost. {PARETO_MEANING}", pareto),
    ]


PARETO_AXES = {"trainable": "weights", "peak_bytes": "memory", "train_seconds": "time"}


def pareto(summary: StrategySummary) -> str:
    """The costs by Pareto status: 'optimal: weights, memory; dominated: time'."""
    by_status: dict[str, list[str]] = {}
    for axis, status in summary.pareto.items():
        by_status.setdefault(status, []).append(PARETO_AXES[axis])
    return "; ".join(f"{status}: {', '.join(axes)}" for status, axes in by_status.items())


def cost(head: str, about: str, name: str, unit: float = 1, form: str = ",.0f") -> Column:
    """The column of a cost's median."""

    def value(summary: StrategySummary) -> float | None:
        found = summary.measures.get(name)
        return None if found is None else found.median

    return Column(head, about, lambda s: median(s.measures.get(name), unit, form), value)


def median(found: Measure | None, unit: float, form: str) -> str:
    """A cost's median; empty if unknown."""
    return "" if found is None else format(found.median / unit, form)


def reached(summary: StrategySummary) -> str:
    """Seconds to the reference's validation score, and how many seeds reached it."""
    if summary.reached is None:
        return ""
    found = median(summary.measures["seconds_to_reference"], 1, ",.0f")
    return f"{found} ({summary.reached} seeds)" if found else "not reached"


def score(summary: StrategySummary) -> str:
    """The mean with its standard deviation."""
    if summary.mean is None:
        return ""
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.4f}"
    return f"{summary.mean:.4f}{spread}"


def interval(found: Difference | None, scale: Scale, low: str, high: str) -> str:
    """A difference with one of its intervals."""
    if found is None:
        return ""
    ends = ", ".join(scale.describe(getattr(found, end)) for end in (low, high))
    return f"{scale.describe(found.value)} [{ends}]"


class Table(NamedTuple):
    """The table of strategies as plain text, answers without training last."""

    columns: list[Column]
    """Those that are not empty."""
    rows: list[list[str]]
    empty: list[str]
    """The headings of the others."""

    def part(self, is_main: bool) -> tuple[list[Column], list[list[str]]]:
        """The columns that are shown at first, or the others, each after the strategy."""
        kept = [i for i, column in enumerate(self.columns) if i == 0 or column.is_main == is_main]
        return [self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows]


def table_of(report: ReportData) -> Table:
    """The table with a row for each strategy and each answer without training."""
    every = columns_of(report)
    rows = [[column.text(each) for column in every] for each in report.strategies]
    kept = [i for i, _ in enumerate(every) if any(row[i] for row in rows)]
    shown = [every[i] for i in kept]
    rows = [[row[i] for i in kept] for row in rows]
    for name, value in report.baselines.items():
        number = "undefined" if value is None else f"{value:.4f}"
        known = {"strategy": name, "trainable": "0", f"{report.metric}, mean ± sd": number}
        rows.append([known.get(column.head, "") for column in shown])
    optional = ("base stored in", "mixed")
    empty = [c.head for i, c in enumerate(every) if i not in kept and c.head not in optional]
    return Table(shown, rows, empty)


def method(report: ReportData) -> list[str]:
    """Paragraphs on how intervals and p-values are computed."""
    count = sum(each.difference is not None for each in report.strategies)
    if not count:
        return []
    return [
        f"Differences are paired: {noise(report)}",
        f"p-values are corrected by Holm over all {len(report.pairs)} pairs; half of the error "
        f"rate of 5 % is for the {count} comparisons with {report.reference}, half for all other "
        "pairs. Groups use the same p-values.",
    ]


def noise(report: ReportData) -> str:
    """The pairing, and the sources of variance."""
    if report.folds is None:
        return (
            "the same rows and seeds. Both are random in the interval and in p (seeds and rows "
            "crossed: Student's t for the seeds' part, the normal distribution for the rows')."
        )
    return (
        f"the same folds of {report.folds}. Training sets of folds overlap, so their scores are "
        "correlated: the variance of the mean is (1/folds + test rows/other rows) times that of "
        "the folds, not 1/folds times, with Student's t on folds - 1 degrees of freedom (Nadeau "
        "and Bengio 2003)."
    )
