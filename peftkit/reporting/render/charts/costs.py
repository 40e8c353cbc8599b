"""Scores against costs: trainable parameters, peak memory and training time."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Any

from peftkit.reporting.analysis.differences import INTERVAL
from peftkit.reporting.analysis.pareto import DOMINATED, INCONCLUSIVE, OPTIMAL, typical_cost
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.render.chart import (
    SHAPES,
    Chart,
    Row,
    axis_ends,
    chart,
    printable_label,
    rounded,
)
from peftkit.reporting.render.columns import PARETO_MEANING
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.analysis.summaries import StrategySummary
    from peftkit.reporting.render.chart import Drawing

MARKS = {OPTIMAL: "Pareto-optimal", INCONCLUSIVE: INCONCLUSIVE, DOMINATED: DOMINATED}
NO_MARK = "not compared"
DEVIATION = "± one standard deviation"
MOST_POINTS = 100
MOST_NAMED = 24
"""Points that have their names next to them; of more points, only the Pareto-optimal ones."""
WIDTH, HEIGHT = 520, 320
LINE, LETTER = 13, 6.3
"""Height of a name and width of its letters, in pixels."""
MOST_NAME = 28
SHIFTS = (0, -1.2, 1, -2.2, 2)
"""Lines by which a name may be moved; further away it would look like another point's."""


@chart("score_by_parameters")
def score_by_parameters(report: ReportData) -> Chart | None:
    """The score of each strategy against its trainable parameters."""
    return score_by_cost(report, "trainable", "trainable parameters", logarithmic=True)


@chart("score_by_memory")
def score_by_memory(report: ReportData) -> Chart | None:
    """The score of each strategy against its peak memory in training."""
    return score_by_cost(report, "peak_bytes", "peak memory (MiB)", unit=2**20)


@chart("score_by_time")
def score_by_time(report: ReportData) -> Chart | None:
    """The score of each strategy against its training time."""
    return score_by_cost(report, "train_seconds", "training time (s)")


def score_by_cost(
    report: ReportData, axis: str, title: str, unit: float = 1, logarithmic: bool = False
) -> Chart | None:
    """The scores against one cost, in `unit`s; None if no strategy has both."""
    scored = [
        (n, each)
        for n, each in enumerate(report.strategies)
        if each.mean is not None and typical_cost(each, axis) is not None
    ]
    on_axis = [(n, each) for n, each in scored if not logarithmic or each.trainable]
    rows = [point(n, each, axis, unit) for n, each in most_interesting(on_axis, axis)]
    if not rows:
        return None
    ends = (cost_ends([row["cost"] for row in rows], logarithmic), score_ends(rows, report.metric))
    name_points(rows, *ends, logarithmic)
    metric = printable(report.metric) + (" (less is better)" * Scale(report.metric).lower)
    return Chart(
        title=f"{metric} against {title}",
        caption=caption(rows, report.folds is not None),
        drawing=drawing(title, metric, rows, *ends, logarithmic),
        rows=rows,
        columns={
            "strategy": "label",
            title: "cost",
            metric: "score",
            "low": "low",
            "high": "high",
            "interval": "interval",
            "Pareto": "pareto",
        },
        remarks=remarks(len(scored), len(on_axis), rows),
    )


def remarks(scored: int, on_axis: int, rows: list[Row]) -> list[str]:
    """Sentences on the strategies and names that are left out."""
    found = []
    if on_axis > MOST_POINTS:
        found.append(
            f"{MOST_POINTS} of {on_axis:,} strategies are shown: the Pareto-optimal ones, and the "
            "best of the others."
        )
    if scored > on_axis:
        found.append("Strategies without trainable weights are not on the logarithmic axis.")
    if not all(row["name"] for row in rows):
        found.append("Names that do not fit are in the table below.")
    return found


def most_interesting(
    found: Sequence[tuple[int, StrategySummary]], axis: str
) -> Sequence[tuple[int, StrategySummary]]:
    """At most `MOST_POINTS` strategies, the Pareto-optimal ones first."""
    first = sorted(found, key=lambda pair: (pair[1].pareto.get(axis) != OPTIMAL, pair[0]))
    return sorted(first[:MOST_POINTS], key=lambda pair: pair[0])


def point(number: int, summary: StrategySummary, axis: str, unit: float) -> Row:
    """One strategy's point, with its interval or else its standard deviation."""
    cost = typical_cost(summary, axis)
    assert cost is not None and summary.mean is not None
    low, high, interval = summary.low, summary.high, INTERVAL
    if low is None and summary.deviation is not None:
        low, high = summary.mean - summary.deviation, summary.mean + summary.deviation
        interval = DEVIATION
    return {
        "n": number,
        "label": printable_label(summary.label),
        "stored": printable(summary.quantization),
        "cost": rounded(cost / unit),
        "score": rounded(summary.mean),
        "low": rounded(low),
        "high": rounded(high),
        "interval": "none" if low is None else interval,
        "pareto": MARKS.get(summary.pareto.get(axis, ""), NO_MARK),
        "name": "",
        "name_at": summary.mean,
    }


def cost_ends(values: Sequence[float], logarithmic: bool) -> list[float]:
    """The ends of a cost's axis, with a margin around the values."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.2)
        return [low / room, high * room]
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - room, high + room]


def score_ends(rows: Sequence[Row], metric: str) -> list[float]:
    """The ends of the score's axis, which stay the same when strategies are filtered out."""
    keys = ("score", "low", "high")
    return axis_ends([row[key] for row in rows for key in keys if row[key] is not None], metric)


def name_points(
    rows: list[Row], costs: Sequence[float], scores: Sequence[float], logarithmic: bool
) -> None:
    """Write names next to points, from the best down, each moved until it covers no other name, or
    left out if there is no room."""
    optimal = MARKS[OPTIMAL]
    named = rows if len(rows) <= MOST_NAMED else [row for row in rows if row["pareto"] == optimal]
    named = named if len(named) <= MOST_NAMED else []
    (left, right), (bottom, top) = costs, scores
    line = (top - bottom) * LINE / HEIGHT

    def across(row: Row) -> float:
        if logarithmic:
            return WIDTH * log(row["cost"] / left) / log(right / left)
        return float(WIDTH * (row["cost"] - left) / (right - left))

    taken = [(across(row) - 6, across(row) + 6, float(row["score"])) for row in named]
    for row in sorted(named, key=lambda row: -row["score"]):
        row["name"] = row["label"][:MOST_NAME]
        start, end = across(row) + 7, across(row) + 8 + LETTER * len(row["name"])
        places = (row["score"] + line * (0.6 + n) for n in SHIFTS)
        free = (y for y in places if not any(meets(start, end, y, other, line) for other in taken))
        row["name_at"] = next(free, None)
        if row["name_at"] is None:
            row["name"] = ""
            continue
        taken.append((start, end, row["name_at"]))


def meets(
    start: float, end: float, y: float, other: tuple[float, float, float], line: float
) -> bool:
    """Whether a name would cover another."""
    return start < other[1] and other[0] < end and abs(y - other[2]) < line * 0.95


def caption(rows: list[Row], folded: bool) -> str:
    """The meaning of bars and shapes."""
    found, runs = [], "folds" if folded else "seeds"
    kinds = {row["interval"] for row in rows}
    if INTERVAL in kinds:
        found.append(f"Bars: {INTERVAL} over {'folds' if folded else 'seeds and test rows'}.")
    if DEVIATION in kinds:
        found.append(f"Dashed bars: one standard deviation over {runs}, not an interval.")
    if "none" in kinds:
        found.append(f"Points without a bar have one of the {runs} and no predictions.")
    if any(row["pareto"] != NO_MARK for row in rows):
        found.append(PARETO_MEANING)
    return " ".join(found)


def drawing(
    title: str,
    metric: str,
    rows: list[Row],
    costs: list[float],
    scores: list[float],
    logarithmic: bool,
) -> Drawing:
    """The Altair chart: bars, points and names."""
    import altair as alt

    across, up = (alt.Scale(domain=ends, nice=False) for ends in (costs, scores))
    if logarithmic:
        across.type = "log"
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=alt.X(
            "cost:Q",
            title=title + (", logarithmic" if logarithmic else ""),
            scale=across,
            axis=alt.Axis(grid=False, tickCount=6, format="~s" if logarithmic else ",f"),
        )
    )
    stored = alt.Color(
        "stored:N", title="base stored in", scale=stored_scale(rows), **legend(rows, "stored")
    )
    bars = base.mark_rule(strokeWidth=1.6, opacity=0.75, clip=True).encode(
        y=alt.Y("low:Q", title=metric, scale=up),
        y2="high:Q",
        strokeDash=alt.StrokeDash("interval:N", legend=None, scale=dashes()),
        color=stored,
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=alt.Y("score:Q", title=metric),
        color=stored,
        shape=alt.Shape("pareto:N", title=None, scale=pareto_scale(), **legend(rows, "pareto")),
        tooltip=["label:N", "stored:N", "cost:Q", "score:Q", "low:Q", "high:Q", "pareto:N"],
    )
    names = base.mark_text(align="left", baseline="middle", dx=8).encode(
        y="name_at:Q", text="name:N"
    )
    return alt.layer(bars, points, names).properties(width=WIDTH, height=HEIGHT)


def legend(rows: list[Row], key: str) -> dict[str, Any]:
    """A legend of the values that occur; none for a single value."""
    import altair as alt

    order = [*MARKS.values(), NO_MARK, "none"]
    values = sorted(
        {row[key] for row in rows}, key=lambda v: (order.index(v) if v in order else 9, v)
    )
    return {"legend": alt.Legend(values=values, symbolOpacity=1) if len(values) > 1 else None}


def stored_scale(rows: list[Row]) -> altair.Scale:
    """Colors that stay the same when strategies are filtered out."""
    import altair as alt

    stored = {row["stored"] for row in rows}
    return alt.Scale(domain=sorted(stored, key=lambda name: (name != "none", name)))


def pareto_scale() -> altair.Scale:
    """A shape for each Pareto status."""
    import altair as alt

    marks = [*MARKS.values(), NO_MARK]
    return alt.Scale(domain=marks, range=["circle", "diamond", "cross", SHAPES[1]])


def dashes() -> altair.Scale:
    """Solid lines for intervals, dashes for standard deviations."""
    import altair as alt

    return alt.Scale(domain=[INTERVAL, DEVIATION, "none"], range=[[1, 0], [3, 3], [1, 0]])
