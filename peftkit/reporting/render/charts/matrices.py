"""Confusion matrices, and how often strategies disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.render.chart import (
    Chart,
    Row,
    chart,
    faceted,
    first_strategies,
    numbers,
    printable_label,
    printable_labels,
    replicates,
    rounded,
)

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.analysis.details import Confusion
    from peftkit.reporting.render.chart import Drawing

MOST_MATRICES = 9
MOST_CLASSES = 12


@chart("confusion", "No confusion matrices: the records have none.")
def confusion(report: ReportData) -> Chart | None:
    """The confusion matrix of each strategy."""
    by_label = {each.label: each for each in report.confusions if len(each.names) <= MOST_CLASSES}
    labels, remarks = first_strategies(list(by_label), report, MOST_MATRICES)
    if len(by_label) < len(report.confusions):
        remarks.append(f"Matrices of more than {MOST_CLASSES} classes are left out.")
    places = numbers(report)
    rows = [row for label in labels for row in cells(by_label[label], places[label])]
    if not rows:
        return None
    largest = max(len(by_label[label].names) for label in labels)
    return Chart(
        title="Confusion matrices",
        caption=f"Test rows by true and predicted class, summed over {replicates(report)}; the "
        "darker, the larger the share of the true class.",
        drawing=confusion_chart(printable_labels(labels), largest),
        rows=rows,
        columns={
            "strategy": "label",
            "true": "true",
            "predicted": "predicted",
            "rows": "count",
            "share of the true class": "share",
            replicates(report): "seeds",
        },
        remarks=remarks,
    )


def cells(matrix: Confusion, number: int) -> list[Row]:
    """The cells of a confusion matrix."""
    names = [printable_label(name) for name in matrix.names]
    return [
        {
            "n": number,
            "label": printable_label(matrix.label),
            "true": true,
            "predicted": predicted,
            "count": count,
            "share": rounded(count / (sum(counts) or 1)),
            "seeds": matrix.seeds,
        }
        for true, counts in zip(names, matrix.counts, strict=True)
        for predicted, count in zip(names, counts, strict=True)
    ]


def confusion_chart(labels: Sequence[str], classes: int) -> Drawing:
    """The Altair chart of confusion matrices."""
    import altair as alt

    size = max(110, 26 * classes)
    x = alt.X(
        "predicted:N",
        title="predicted",
        sort=None,
        axis=alt.Axis(labelAngle=0 if classes < 4 else -45, labelLimit=110),
    )
    y = alt.Y("true:N", title="true", sort=None, axis=alt.Axis(labelLimit=110))
    plots = shaded(x, y, ["label:N", "true:N", "predicted:N", "count:Q", "share:Q"], "count:Q", ",")
    return faceted(plots.properties(width=size, height=size), labels)


def shaded(
    x: altair.X, y: altair.Y, tooltip: list[str], text: str, form: str, data: Any = None
) -> Drawing:
    """Cells that are more opaque the larger their share; their text stays readable."""
    import altair as alt

    base = (alt.Chart(data) if data is not None else alt.Chart()).encode(x=x, y=y)
    scale = alt.Scale(domain=[0, 1], range=[0.03, 0.55])
    opacity = alt.Opacity("share:Q", legend=None, scale=scale)
    boxes = base.mark_rect().encode(opacity=opacity, tooltip=tooltip)
    return alt.layer(boxes, base.mark_text().encode(text=alt.Text(text, format=form)))


@chart(
    "disagreement",
    "No disagreement between strategies: fewer than two have predictions of the same rows.",
)
def disagreement(report: ReportData) -> Chart | None:
    """The share of test rows that each two strategies predict differently."""
    found, places = report.disagreement, numbers(report)
    if found is None:
        return None
    largest = max((share for row in found.shares for share in row if share is not None), default=0)
    rows = [
        {
            "n": places[one],
            "m": places[two],
            "label": printable_label(one),
            "other": printable_label(two),
            "differ": rounded(100 * share),
            "share": rounded(share / largest if largest else 0.0),
        }
        for one, shares in zip(found.labels, found.shares, strict=True)
        for two, share in zip(found.labels, shares, strict=True)
        if share is not None
    ]
    scored = sum(each.mean is not None for each in report.strategies)
    return Chart(
        title="Test rows that two strategies predict differently, in %",
        caption="Share of the test rows on which a run of one strategy and a run of the other "
        "differ; on the diagonal, two seeds of the same strategy. A share that is no larger "
        "says nothing about the strategies.",
        drawing=disagreement_chart(printable_labels(found.labels)),
        rows=rows,
        columns={"strategy": "label", "other": "other", "rows in %": "differ"},
        remarks=[f"Only the best {len(found.labels)} strategies by mean are shown."]
        if scored > len(found.labels)
        else [],
    )


def disagreement_chart(labels: Sequence[str]) -> Drawing:
    """The Altair chart of disagreement."""
    import altair as alt

    x = alt.X("other:N", title=None, sort=list(labels), axis=alt.Axis(labelAngle=-45))
    y = alt.Y("label:N", title=None, sort=list(labels))
    size = max(160, 40 * len(labels)) if len(labels) <= 12 else 24 * len(labels)
    form = ".1f" if len(labels) <= 12 else ".0f"
    cells = shaded(
        x, y, ["label:N", "other:N", "differ:Q"], "differ:Q", form, alt.NamedData(name="rows")
    )
    return cells.properties(width=size, height=size)
