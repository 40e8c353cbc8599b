"""Learning curves of a run: losses and validation scores by optimizer step, as SVG."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Point = dict[str, float | str]

INK = {"training": "#0072B2", "validation": "#D55E00"}
"""Blue and vermilion of Okabe and Ito, for color-blind readers; dashes differ in grayscale."""
DASH = {"training": [1, 0], "validation": [6, 3]}
MAX_MARKERS = 40  # more would hide the line
WIDTH = 480  # pixels, of the plot; also the limit of its title


def draw_learning_curves(
    log: Sequence[Mapping[str, float | None]],
    folder: Path,
    headline: str = "score",
    run: str = "",
    loss: str = "cross-entropy (nats)",
) -> list[Path]:
    """Write `loss.svg` and `scores.svg` to `folder`; returns the paths of those with values to
    plot.

    An entry of `log` has `step` and any of `loss`, `eval_loss` and `eval_score`, which is the
    `headline` of the validation split; `run` is the subtitle, and `loss` the axis title of the
    losses. None, NaN and infinity are left out.
    """
    losses = [*points(log, "loss", "training"), *points(log, "eval_loss", "validation")]
    scores = list(points(log, "eval_score", "validation"))
    charts = {
        "loss.svg": (losses, "Loss", loss),
        "scores.svg": (scores, f"Validation {headline}", headline + direction(headline)),
    }
    found = {name: chart for name, chart in charts.items() if chart[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, title, axis) in found.items():
        draw(rows, folder / name, printable(title), printable(axis), printable(run))
    return [folder / name for name in found]


def direction(metric: str) -> str:
    """The best value of a metric, as a suffix of its name; empty if it is unknown."""
    from peftkit.metrics.registry import find_metric

    found = find_metric(metric)
    if not found.higher_is_better:
        return " (lower is better)"
    return "" if found.best is None else f" ({found.best:g} is perfect)"


def points(log: Sequence[Mapping[str, float | None]], key: str, curve: str) -> Iterator[Point]:
    """The finite values of `key` in `log`, with their steps."""
    for line in log:
        value, step = line.get(key), line.get("step")
        if value is not None and step is not None and math.isfinite(value):
            yield {"step": step, "value": value, "curve": curve}


def draw(rows: list[Point], path: Path, title: str, axis: str, run: str) -> None:
    """Write a line chart of `rows` by curve, with markers if there are few enough."""
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
    few = [row for row in rows if length[row["curve"]] <= MAX_MARKERS]
    marks = base.mark_point(filled=True, size=28, opacity=1).properties(
        data=alt.InlineData(values=few)
    )
    heading = alt.Title(title, subtitle=run, limit=WIDTH, anchor="start")
    chart = alt.layer(lines, marks).properties(width=WIDTH, height=280, title=heading)
    chart.save(str(path), format="svg")


def printable(text: str) -> str:
    """`text` without control characters and lone surrogates, which XML cannot contain."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
