"""Matrix charts: what each class was taken for, and how often strategies disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftkit.reporting.render.picture import (
    Picture,
    Row,
    faceted,
    kept,
    numbers,
    order_of,
    rounded,
    shown_label,
    turns,
)

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.analysis.details import Confusion
    from peftkit.reporting.analysis.results import ReportData
    from peftkit.reporting.render.picture import Drawing

MOST_MATRICES = 9
MOST_CLASSES = 12


def matrix_pictures(report: ReportData) -> list[Picture]:
    """The pictures that confusion matrices and predictions are there for."""
    found = [confusions(report), disagreement(report)]
    return [picture for picture in found if picture is not None]


def confusions(report: ReportData) -> Picture | None:
    """What each strategy took each class for, a matrix a strategy."""
    by_label = {each.label: each for each in report.confusions if len(each.names) <= MOST_CLASSES}
    labels, words = kept(list(by_label), report, MOST_MATRICES)
    if len(by_label) < len(report.confusions):
        words.append(f"Matrices of more than {MOST_CLASSES} classes are left out.")
    places = numbers(report)
    rows = [row for label in labels for row in cells(by_label[label], places[label])]
    if not rows:
        return None
    largest = max(len(by_label[label].names) for label in labels)
    return Picture(
        name="confusion",
        title="What each class was taken for",
        caption=f"Test rows summed over {turns(report)}; the darker, the larger the share of the "
        "true class.",
        chart=confusion_chart(order_of(labels), largest),
        rows=rows,
        columns={
            "strategy": "label",
            "true": "true",
            "predicted": "predicted",
            "rows": "count",
            "share of the true class": "share",
            turns(report): "seeds",
        },
        words=words,
    )


def cells(matrix: Confusion, number: int) -> list[Row]:
    """A confusion matrix cell by cell."""
    names = [shown_label(name) for name in matrix.names]
    return [
        {
            "n": number,
            "label": shown_label(matrix.label),
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
    """The specification of confusion matrices."""
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
    """Cells, the more opaque the larger their share, none so much that its text is hard to read."""
    import altair as alt

    base = (alt.Chart(data) if data is not None else alt.Chart()).encode(x=x, y=y)
    scale = alt.Scale(domain=[0, 1], range=[0.03, 0.55])
    opacity = alt.Opacity("share:Q", legend=None, scale=scale)
    boxes = base.mark_rect().encode(opacity=opacity, tooltip=tooltip)
    return alt.layer(boxes, base.mark_text().encode(text=alt.Text(text, format=form)))


def disagreement(report: ReportData) -> Picture | None:
    """On how many test rows each two strategies differ."""
    found, places = report.disagreement, numbers(report)
    if found is None:
        return None
    largest = max((share for row in found.shares for share in row if share is not None), default=0)
    rows = [
        {
            "n": places[one],
            "m": places[two],
            "label": shown_label(one),
            "other": shown_label(two),
            "differ": rounded(100 * share),
            "share": rounded(share / largest if largest else 0.0),
        }
        for one, shares in zip(found.labels, found.shares, strict=True)
        for two, share in zip(found.labels, shares, strict=True)
        if share is not None
    ]
    scored = sum(each.mean is not None for each in report.standings)
    return Picture(
        name="disagreement",
        title="Test rows that two strategies answer differently, in %",
        caption="Share of the test rows on which two runs differ, one of each strategy; on the "
        "diagonal two seeds of the same: what is no more than there is no difference of "
        "strategies.",
        chart=disagreement_chart(order_of(found.labels)),
        rows=rows,
        columns={"strategy": "label", "other": "other", "rows in %": "differ"},
        words=[f"Only the best {len(found.labels)} strategies by their mean are shown."]
        if scored > len(found.labels)
        else [],
    )


def disagreement_chart(labels: Sequence[str]) -> Drawing:
    """The specification of the heat map."""
    import altair as alt

    x = alt.X("other:N", title=None, sort=list(labels), axis=alt.Axis(labelAngle=-45))
    y = alt.Y("label:N", title=None, sort=list(labels))
    size = max(160, 40 * len(labels)) if len(labels) <= 12 else 24 * len(labels)
    form = ".1f" if len(labels) <= 12 else ".0f"
    cells = shaded(
        x, y, ["label:N", "other:N", "differ:Q"], "differ:Q", form, alt.NamedData(name="rows")
    )
    return cells.properties(width=size, height=size)
