"""Detail charts: learning curves and the search for learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.render.picture import (
    DASHES,
    MOST_LINES,
    SHAPES,
    Picture,
    faceted,
    kept,
    numbers,
    order_of,
    rounded,
    shown_label,
    turns,
)
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    from peftkit.reporting.analysis.results import ReportData
    from peftkit.reporting.render.picture import Drawing

MOST_SEARCHES = 12
MOST_MARKED = 30
"""Points of a curve; more of them would hide the line."""


def detail_pictures(report: ReportData) -> list[Picture]:
    """The pictures that logs and searches are there for."""
    return [picture for picture in (curves(report), searches(report)) if picture is not None]


def curves(report: ReportData) -> Picture | None:
    """The validation score over the optimizer steps, with a band over seeds."""
    labels, words = kept([curve.label for curve in report.curves], report, MOST_LINES)
    places = numbers(report)
    by_label = {curve.label: curve.points for curve in report.curves}
    rows = [
        {
            "n": places[label],
            "label": shown_label(label),
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
    over = turns(report)
    return Picture(
        name="learning_curves",
        title="Validation score while training",
        caption=f"Lines are means over {over}, bands their lowest and highest. A step that some "
        f"{over} did not reach has the mean of those that did."
        + less_is_better(report.validated_by),
        chart=curve_chart(order_of(labels)),
        rows=rows,
        columns={
            "strategy": "label",
            "step": "step",
            "mean": "score",
            "lowest": "low",
            "highest": "high",
            over: "seeds",
        },
        words=words,
    )


def less_is_better(metric: str) -> str:
    """A sentence about scores of which that holds."""
    return f" Less {printable(metric)} is better." if Scale(metric).lower else ""


def curve_chart(labels: Sequence[str]) -> Drawing:
    """The specification of learning curves."""
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
    score = alt.Y("score:Q", title="validation score", scale=alt.Scale(zero=False))
    bands = base.mark_area(opacity=0.14).encode(
        y=alt.Y("low:Q", title="validation score", scale=alt.Scale(zero=False)), y2="high:Q"
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


def searches(report: ReportData) -> Picture | None:
    """The validation score against the learning rate, a small plot a strategy."""
    labels, words = kept([search.label for search in report.searches], report, MOST_SEARCHES)
    places = numbers(report)
    by_label = {search.label: search.tuning for search in report.searches}
    rows = [
        {
            "n": places[label],
            "label": shown_label(label),
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
    drawn = [row for row in rows if row["score"] is not None]
    if not drawn:
        return None
    failed = len(rows) - len(drawn)
    metrics = sorted({printable(by_label[label].metric) for label in labels})
    return Picture(
        name="rate_search",
        title="Search for the learning rate",
        caption=f"Validation {', '.join(metrics)} of every rate that was tried, chosen without a "
        "test score. A trial that was pruned has the score it was stopped at."
        + less_is_better(by_label[labels[0]].metric)
        + (f" {failed} failed and have none." if failed else ""),
        chart=search_chart(order_of(labels)),
        rows=rows,
        columns={
            "strategy": "label",
            "learning rate": "lr",
            "validation score": "score",
            "step": "step",
            "became": "chosen",
            "its default": "default",
        },
        words=words,
    )


def search_chart(labels: Sequence[str]) -> Drawing:
    """The specification of rate searches."""
    import altair as alt

    became = ["chosen", "finished", "pruned"]
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
            y=alt.Y("score:Q", title="validation score", scale=alt.Scale(zero=False, padding=10)),
        )
    )
    lines = base.mark_line(strokeWidth=1, opacity=0.6)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        color=alt.Color("chosen:N", title=None, scale=alt.Scale(domain=became)),
        shape=alt.Shape(
            "chosen:N",
            title=None,
            scale=alt.Scale(domain=became, range=["diamond", "circle", "triangle-down"]),
        ),
        tooltip=["label:N", "lr:Q", "score:Q", "step:Q", "status:N", "default:N"],
    )
    plots = alt.layer(lines, marks).properties(width=150, height=120)
    return faceted(plots, labels)
