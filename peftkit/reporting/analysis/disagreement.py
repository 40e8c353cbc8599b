"""How many test rows strategies predict differently, and which rows the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.registry import Settings
from peftkit.reporting.analysis.alignment import AlignedScores, ids_of
from peftkit.reporting.analysis.prediction_files import NAMED
from peftkit.reporting.analysis.summaries import StrategyRuns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

MOST_STRATEGIES = 16
"""A chart of more strategies would be unreadable; the best by mean are shown."""
MOST_ROWS = 20
"""Test rows that are listed."""


class DisputedRow(Settings):
    """A test row that strategies predict differently, without its text."""

    row: str
    label: str | None
    answers: dict[str, float]
    """The share of each class among the predictions; strategies have equal weights."""
    wrong: list[str]
    """Strategies with more than half of their seeds wrong."""


class Disagreement(Settings):
    """How often the predictions of strategies differ."""

    labels: list[str]
    shares: list[list[float | None]]
    """Mean share of the test rows on which a run of one strategy and a run of the other differ; for
    a strategy and itself, runs of different seeds, null for one seed."""
    rows: int
    disputed: list[DisputedRow]
    """The rows that strategies differ most on, beyond what their seeds do."""


def disagreement_of(
    strategies: Sequence[StrategyRuns], aligned: AlignedScores
) -> Disagreement | None:
    """The disagreement among strategies, the best first; None where fewer than two have
    predictions."""
    tables = {run.where: columns for run, columns in aligned.read if gives_labels(columns)}
    runs = {
        strategy.label: [tables[run.where] for run in strategy.finished if run.where in tables]
        for strategy in strategies
    }
    labels = [label for label, found in runs.items() if found][:MOST_STRATEGIES]
    if len(labels) < 2:
        return None
    first = runs[labels[0]][0]
    answered = [column["predicted"] for label in labels for column in runs[label]]
    names = sorted({name for column in answered for name in column.unique().to_pylist()})
    ids = {
        label: np.stack([ids_of(columns["predicted"], names) for columns in runs[label]])
        for label in labels
    }
    return Disagreement(
        labels=labels,
        shares=[[share(ids[one], ids[two], one == two) for two in labels] for one in labels],
        rows=len(first["row"]),
        disputed=disputed(ids, names, first["row"].to_pylist(), first["label"].to_pylist()),
    )


def gives_labels(columns: Mapping[str, Any]) -> bool:
    """Whether labels and predictions are names of classes."""
    import pyarrow

    both = [columns[name].type for name in NAMED if name in columns]
    return len(both) == len(NAMED) and all(map(pyarrow.types.is_string, both))


def share(one: Integers, two: Integers, same: bool) -> float | None:
    """The mean share of rows on which runs (seeds, rows) of two strategies differ."""
    if not same:
        return float((one[:, None] != two[None]).mean())
    pairs = len(one) * (len(one) - 1)
    return float((one[:, None] != one[None]).mean(axis=2).sum() / pairs) if pairs else None


def disputed(
    ids: Mapping[str, Integers], names: Sequence[str], rows: Sequence[str], labels: Sequence[str]
) -> list[DisputedRow]:
    """The rows whose predictions vary most between strategies: the largest sum over classes of the
    variance of their shares."""
    shares = np.stack(
        [
            np.stack([(own == name).mean(axis=0) for own in ids.values()])
            for name in range(len(names))
        ]
    )  # classes, strategies, rows
    spread = shares.var(axis=1).sum(axis=0)
    order = np.lexsort((np.arange(len(spread)), -spread))[:MOST_ROWS]
    return [
        DisputedRow(
            row=rows[place],
            label=labels[place],
            answers={
                name: float(found)
                for name, found in zip(names, shares[:, :, place].mean(axis=1), strict=True)
                if found > 0
            },
            wrong=wrong_on(ids, names, place, labels[place]),
        )
        for place in map(int, order)
        if spread[place] > 0
    ]


def wrong_on(
    ids: Mapping[str, Integers], names: Sequence[str], place: int, label: str | None
) -> list[str]:
    """The strategies that are mostly wrong on a row; none without a label."""
    if label is None:
        return []
    true = names.index(label) if label in names else -1
    return [name for name, own in ids.items() if (own[:, place] != true).mean() > 0.5]
