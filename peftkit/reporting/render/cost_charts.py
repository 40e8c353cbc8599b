"""Cost charts: each strategy's score against what it trains, holds in memory and takes in time."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Any

from peftkit.reporting.analysis.pareto import typical
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.render.picture import SHAPES, Picture, Row, rounded, shown_label
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    import altair

    from peftkit.reporting.analysis.results import ReportData
    from peftkit.reporting.analysis.summaries import Standing
    from peftkit.reporting.render.picture import Drawing

COSTS = {
    "trainable": ("score_by_parameters", "trainable parameters", 1),
    "peak_bytes": ("score_by_memory", "peak memory (MiB)", 2**20),
    "train_seconds": ("score_by_time", "training time (s)", 1),
}
"""By cost: the picture's name, the axis and the axis' unit."""
MARKS = {"front": "on", "open": "open", "behind": "behind"}
NO_MARK = "not compared"
MOST_POINTS = 100
MOST_NAMED = 24
"""Points that have their names beside them; of more points those on the front have, if not too
many."""
WIDTH, HEIGHT = 520, 320
LINE, LETTER = 13, 6.3
"""Height of a name and width of its letters, in pixels."""
MOST_NAME = 28
TRIED = (0, -1.2, 1, -2.2, 2)
"""Lines by which a name may be moved: further off it would be read as another point's."""


def cost_pictures(report: ReportData) -> list[Picture]:
    """A picture a cost that some strategy with a score has."""
    return [found for axis in COSTS if (found := cost_picture(report, axis)) is not None]


def cost_picture(report: ReportData, axis: str) -> Picture | None:
    """Scores against one cost; None where no strategy has both."""
    name, title, unit = COSTS[axis]
    scored = [
        (n, each)
        for n, each in enumerate(report.standings)
        if each.mean is not None and typical(each, axis) is not None
    ]
    on_axis = [(n, each) for n, each in scored if axis != "trainable" or each.trainable]
    rows = [point(n, each, axis, unit) for n, each in most_telling(on_axis, axis)]
    if not rows:
        return None
    words = []
    if len(on_axis) > MOST_POINTS:
        words.append(
            f"Of {len(on_axis):,} strategies {MOST_POINTS} are shown: those on the front, and the "
            "best of the others."
        )
    if len(scored) > len(on_axis):
        words.append("Strategies that train nothing have no place on a logarithmic axis.")
    logarithmic = axis == "trainable"
    name_points(rows, logarithmic)
    if not all(row["name"] for row in rows):
        words.append("Names for which there is no room are in the table below.")
    metric = printable(report.metric) + (" (less is better)" * Scale(report.metric).lower)
    return Picture(
        name=name,
        title=f"{metric} against {title}",
        caption=caption(rows, report.folds is not None),
        chart=chart(title, metric, rows, logarithmic),
        rows=rows,
        columns={
            "strategy": "label",
            title: "cost",
            metric: "score",
            "low": "low",
            "high": "high",
            "interval": "interval",
            "front": "front",
        },
        words=words,
    )


def most_telling(
    found: Sequence[tuple[int, Standing]], axis: str
) -> Sequence[tuple[int, Standing]]:
    """At most so many strategies as can be seen, those on the front first."""
    first = sorted(found, key=lambda pair: (pair[1].front.get(axis) != "front", pair[0]))
    return sorted(first[:MOST_POINTS], key=lambda pair: pair[0])


def point(number: int, standing: Standing, axis: str, unit: float) -> Row:
    """One strategy's point, with the interval that is known."""
    cost = typical(standing, axis)
    assert cost is not None and standing.mean is not None
    low, high, interval = standing.low, standing.high, "95 %"
    if low is None and standing.deviation is not None:
        low, high = standing.mean - standing.deviation, standing.mean + standing.deviation
        interval = "± one deviation"
    return {
        "n": number,
        "label": shown_label(standing.label),
        "held": printable(standing.quantization),
        "cost": rounded(cost / unit),
        "score": rounded(standing.mean),
        "low": rounded(low),
        "high": rounded(high),
        "interval": "none" if low is None else interval,
        "front": MARKS.get(standing.front.get(axis, ""), NO_MARK),
        "name": "",
        "name_at": standing.mean,
    }


def ends(values: Sequence[float], logarithmic: bool = False) -> tuple[float, float]:
    """An axis' ends, with room around the values."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.2)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def frame(rows: Sequence[Row], logarithmic: bool) -> tuple[tuple[float, float], ...]:
    """The ends of both axes: they stay where they are when strategies are filtered out."""
    known = [row[key] for row in rows for key in ("score", "low", "high") if row[key] is not None]
    return ends([row["cost"] for row in rows], logarithmic), ends(known)


def name_points(rows: list[Row], logarithmic: bool) -> None:
    """Write names beside points, from the best down, each moved by as many lines as it must be to
    cover nothing, or left out where there is no room."""
    named = rows if len(rows) <= MOST_NAMED else [row for row in rows if row["front"] == "on"]
    named = named if len(named) <= MOST_NAMED else []
    (left, right), (bottom, top) = frame(rows, logarithmic)
    line = (top - bottom) * LINE / HEIGHT

    def across(row: Row) -> float:
        if logarithmic:
            return WIDTH * log(row["cost"] / left) / log(right / left)
        return float(WIDTH * (row["cost"] - left) / (right - left))

    taken = [(across(row) - 6, across(row) + 6, float(row["score"])) for row in named]
    for row in sorted(named, key=lambda row: -row["score"]):
        row["name"] = row["label"][:MOST_NAME]
        start, end = across(row) + 7, across(row) + 8 + LETTER * len(row["name"])
        places = (row["score"] + line * (0.6 + n) for n in TRIED)
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
    """What the marks mean."""
    said, runs = [], "folds" if folded else "seeds"
    kinds = {row["interval"] for row in rows}
    if "95 %" in kinds:
        said.append(f"Bars are 95 % intervals over {'folds' if folded else 'seeds and test rows'}.")
    if "± one deviation" in kinds:
        said.append(f"Dashed bars are one standard deviation over {runs}, no interval.")
    if "none" in kinds:
        said.append(f"Points without a bar rest on one of the {runs}, without predictions.")
    if any(row["front"] != NO_MARK for row in rows):
        said.append(
            "On the front: no strategy has both a better mean and a lower cost; behind: one that "
            "is significantly better is surely no dearer; open: these runs cannot tell."
        )
    return " ".join(said)


def chart(title: str, metric: str, rows: list[Row], logarithmic: bool) -> Drawing:
    """The specification: bars, points and names."""
    import altair as alt

    across, up = (alt.Scale(domain=list(both), nice=False) for both in frame(rows, logarithmic))
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
    held = alt.Color("held:N", title="base held in", scale=held_scale(rows), **legend(rows, "held"))
    bars = base.mark_rule(strokeWidth=1.6, opacity=0.75).encode(
        y=alt.Y("low:Q", title=metric, scale=up),
        y2="high:Q",
        strokeDash=alt.StrokeDash("interval:N", legend=None, scale=dashes()),
        color=held,
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=alt.Y("score:Q", title=metric),
        color=held,
        shape=alt.Shape("front:N", title="front", scale=front_scale(), **legend(rows, "front")),
        tooltip=["label:N", "held:N", "cost:Q", "score:Q", "low:Q", "high:Q", "front:N"],
    )
    names = base.mark_text(align="left", baseline="middle", dx=8).encode(
        y="name_at:Q", text="name:N"
    )
    return alt.layer(bars, points, names).properties(width=WIDTH, height=HEIGHT)


def legend(rows: list[Row], key: str) -> dict[str, Any]:
    """The values that are there; no legend where there is nothing to tell apart."""
    import altair as alt

    order = [*MARKS.values(), NO_MARK, "none"]
    values = sorted(
        {row[key] for row in rows}, key=lambda v: (order.index(v) if v in order else 9, v)
    )
    return {"legend": alt.Legend(values=values, symbolOpacity=1) if len(values) > 1 else None}


def held_scale(rows: list[Row]) -> altair.Scale:
    """The same colors whatever is filtered out."""
    import altair as alt

    held = {row["held"] for row in rows}
    return alt.Scale(domain=sorted(held, key=lambda name: (name != "none", name)))


def front_scale() -> altair.Scale:
    """A shape a mark of the front."""
    import altair as alt

    marks = [*MARKS.values(), NO_MARK]
    return alt.Scale(domain=marks, range=["circle", "diamond", "cross", SHAPES[1]])


def dashes() -> altair.Scale:
    """Whole lines for intervals, dashes for what is none."""
    import altair as alt

    return alt.Scale(domain=["95 %", "± one deviation", "none"], range=[[1, 0], [3, 3], [1, 0]])
