"""Learning curves, and the search for learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.render.chart import (
    DASHES,
    MOST_LINES,
    SHAPES,
    Chart,
    Row,
    axis_ends,
    chart,
    faceted,
    first_strategies,
    numbers,
    printable_label,
    printable_labels,
    replicates,
    rounded,
)
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.render.chart import Drawing

MOST_SEARCHES = 12
MOST_MARKED = 30
"""Points of a curve that are marked; more of them would hide the line."""


@chart("learning_curves", "No learning curves: there is no log next to the records.")
def learning_curves(report: ReportData) -> Chart | None:
    """The validation score over the optimizer steps, with a band over seeds."""
    labels, remarks = first_strategies([curve.label for curve in report.curves], report, MOST_LINES)
    places = numbers(report)
    by_label = {curve.label: curve.points for curve in report.curves}
    rows = [
        {
            "n": places[label],
            "label": printable_label(label),
            "step": point.step,
            "score": rounded(point.mean),
            "low": rounded(point.low),
            "high": rounded(point.high),
            "seeds": point.seeds,
            "marked": len(by_label[label]) <= MOST_MARKED,
        }
        for label in labels
        for point in by_label[label]
    ]
    if not rows:
        return None
    over = replicates(report)
    return Chart(
        title="Validation score during training",
        caption=f"Lines: means over {over}; bands: the lowest and the highest. A step that some "
        f"{over} did not reach has the mean of the others." + less_is_better(report.validated_by),
        drawing=curve_chart(printable_labels(labels), score_axis(rows, report.validated_by)),
        rows=rows,
        columns={
            "strategy": "label",
            "step": "step",
            "mean": "score",
            "lowest": "low",
            "highest": "high",
            over: "seeds",
        },
        remarks=remarks,
    )


def less_is_better(metric: str) -> str:
    """A sentence for metrics of which less is better."""
    return f" Less {printable(metric)} is better." if Scale(metric).lower else ""


def score_axis(rows: Sequence[Row], metric: str) -> altair.Scale:
    """The scale of a validation score, within the values that it can have."""
    import altair as alt

    keys = ("score", "low", "high")
    values = [row[key] for row in rows for key in keys if row.get(key) is not None]
    return alt.Scale(domain=axis_ends(values, metric), nice=False)


def curve_chart(labels: Sequence[str], axis: altair.Scale) -> Drawing:
    """The Altair chart of learning curves."""
    import altair as alt

    color = alt.Color(
        "label:N",
        title=None,
        scale=alt.Scale(domain=list(labels)),
        legend=alt.Legend(symbolOpacity=1),
    )
    dash = alt.Scale(domain=labels, range=[list(each) for each in DASHES[: len(labels)]])
    shape = alt.Scale(domain=labels, range=list(SHAPES[: len(labels)]))
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=alt.X("step:Q", title="training (optimizer steps)", axis=alt.Axis(tickMinStep=1)),
        color=color,
    )
    score = alt.Y("score:Q", title="validation score", scale=axis)
    bands = base.mark_area(opacity=0.14).encode(
        y=alt.Y("low:Q", title="validation score", scale=axis), y2="high:Q"
    )
    lines = base.mark_line(strokeWidth=2).encode(
        y=score, strokeDash=alt.StrokeDash("label:N", title=None, scale=dash)
    )
    marks = (
        base.mark_point(filled=True, size=55, opacity=1)
        .transform_filter("datum.marked")
        .encode(
            y=score,
            shape=alt.Shape("label:N", title=None, scale=shape),
            tooltip=["label:N", "step:Q", "score:Q", "low:Q", "high:Q", "seeds:Q"],
        )
    )
    return alt.layer(bands, lines, marks).properties(width=520, height=300)


@chart("rate_search", "No rate search: the learning rates were given.")
def rate_search(report: ReportData) -> Chart | None:
    """The validation score against the learning rate, a small plot for each strategy."""
    labels, remarks = first_strategies(
        [search.label for search in report.searches], report, MOST_SEARCHES
    )
    places = numbers(report)
    by_label = {search.label: search.tuning for search in report.searches}
    rows = [
        {
            "n": places[label],
            "label": printable_label(label),
            "lr": trial.lr,
            "score": rounded(trial.score),
            "step": trial.step,
            "status": trial.status,
            "chosen": "chosen" if trial.lr == by_label[label].chosen else trial.status,
            "default": trial.default,
        }
        for label in labels
        for trial in by_label[label].trials
    ]
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        return None
    failed = len(rows) - len(scored)
    metrics = sorted({printable(by_label[label].metric) for label in labels})
    return Chart(
        title="Search for the learning rate",
        caption=f"Validation {', '.join(metrics)} of every rate that was tried; test scores are "
        "not used. A pruned trial has the score at which it was stopped."
        + less_is_better(by_label[labels[0]].metric)
        + (f" {failed} failed and have no score." if failed else ""),
        drawing=search_chart(printable_labels(labels), score_axis(scored, metrics[0])),
        rows=rows,
        columns={
            "strategy": "label",
            "learning rate": "lr",
            "validation score": "score",
            "step": "step",
            "status": "chosen",
            "default rate": "default",
        },
        remarks=remarks,
    )


def search_chart(labels: Sequence[str], axis: altair.Scale) -> Drawing:
    """The Altair chart of rate searches."""
    import altair as alt

    status = ["chosen", "finished", "pruned"]
    base = (
        alt.Chart()
        .transform_filter("isValid(datum.score)")
        .encode(
            x=alt.X(
                "lr:Q",
                title="learning rate",
                scale=alt.Scale(type="log", padding=12),
                axis=alt.Axis(format="~e", tickCount=3, grid=False),
            ),
            y=alt.Y("score:Q", title="validation score", scale=axis),
        )
    )
    lines = base.mark_line(strokeWidth=1, opacity=0.6)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        color=alt.Color("chosen:N", title=None, scale=alt.Scale(domain=status)),
        shape=alt.Shape(
            "chosen:N",
            title=None,
            scale=alt.Scale(domain=status, range=["diamond", "circle", "triangle-down"]),
        ),
        tooltip=["label:N", "lr:Q", "score:Q", "step:Q", "status:N", "default:N"],
    )
    plots = alt.layer(lines, marks).properties(width=150, height=120)
    return faceted(plots, labels)
