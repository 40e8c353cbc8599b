"""Pictures of a run: its losses and its validation score against the optimizer step."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Point = dict[str, float | str]

INK = {"training": "#0072B2", "validation": "#D55E00"}
"""Blue and vermilion of Okabe and Ito: the color-blind tell them apart, dashes do in gray."""
DASH = {"training": [1, 0], "validation": [6, 3]}
MOST_MARKED = 40  # points; more of them would hide the line
WIDTH = 480  # pixels, of the plot and at most of its title


def draw_learning_curves(
    log: Sequence[Mapping[str, float | None]],
    folder: Path,
    headline: str = "score",
    run: str = "",
    loss: str = "cross-entropy (nats)",
) -> list[Path]:
    """Write `loss.svg` and `scores.svg` into `folder`; returns those that had points to show.

    A line of `log` holds `step` and any of `loss`, `eval_loss` and `eval_score`, which is the
    validation split's `headline`; `run` stands below the titles, and `loss` says what the losses
    are. None, NaN and infinity are left out.
    """
    losses = [*points(log, "loss", "training"), *points(log, "eval_loss", "validation")]
    scores = list(points(log, "eval_score", "validation"))
    charts = {
        "loss.svg": (losses, "Loss", loss),
        "scores.svg": (scores, f"Validation {headline}", headline + direction(headline)),
    }
    drawn = {name: chart for name, chart in charts.items() if chart[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, title, axis) in drawn.items():
        draw(rows, folder / name, printable(title), printable(axis), printable(run))
    return [folder / name for name in drawn]


def direction(metric: str) -> str:
    """What the best value of a metric is, behind its name; nothing where that is not known."""
    from peftkit.metrics.registry import find_metric

    found = find_metric(metric)
    if not found.higher_is_better:
        return " (lower is better)"
    return "" if found.best is None else f" ({found.best:g} is perfect)"


def points(log: Sequence[Mapping[str, float | None]], key: str, curve: str) -> Iterator[Point]:
    """The finite values of `key` in `log` with their steps."""
    for line in log:
        value, step = line.get(key), line.get("step")
        if value is not None and step is not None and math.isfinite(value):
            yield {"step": step, "value": value, "curve": curve}


def draw(rows: list[Point], path: Path, title: str, axis: str, run: str) -> None:
    """Write lines of `rows` by curve, marked where there are few enough points to see."""
    import altair as alt

    length = Counter(row["curve"] for row in rows)
    curves = sorted(map(str, length))
    symbols = alt.Legend(title=None, orient="top", symbolType="stroke", symbolSize=400)
    legend = symbols if len(curves) > 1 else None
    color = alt.Scale(domain=curves, range=[INK[curve] for curve in curves])
    dash = alt.Scale(domain=curves, range=[DASH[curve] for curve in curves])
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("step:Q", title="training (optimizer steps)", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=axis, scale=alt.Scale(zero=False)),
        color=alt.Color("curve:N", scale=color, legend=legend),
    )
    lines = base.mark_line(strokeWidth=1.8).encode(
        strokeDash=alt.StrokeDash("curve:N", scale=dash, legend=legend)
    )
    few = [row for row in rows if length[row["curve"]] <= MOST_MARKED]
    marks = base.mark_point(filled=True, size=28, opacity=1).properties(
        data=alt.InlineData(values=few)
    )
    heading = alt.Title(title, subtitle=run, limit=WIDTH, anchor="start")
    chart = alt.layer(lines, marks).properties(width=WIDTH, height=280, title=heading)
    chart.save(str(path), format="svg")


def printable(text: str) -> str:
    """`text` without the control characters and lone surrogates that XML cannot hold."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
