"""Alignment: the same test rows of every run, matched by their id and the hash of their text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.errors import Fault, RunError
from peftkit.reporting.evidence import Run, counted, listed
from peftkit.reporting.prediction_files import Known, read_predictions
from peftkit.reporting.row_scores import row_scores

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Columns = dict[str, pyarrow.ChunkedArray]
    Read = tuple[Run, Columns]

READERS = min(4, os.cpu_count() or 1)
"""Prediction files that are read beside each other."""
CLOSE = 1e-6
"""Two computations of one score may differ by so much: probabilities are kept with 6 digits."""


@dataclass(frozen=True)
class Aligned:
    """What each run scores on each of the rows that all of them have."""

    values: dict[str, Floats]
    """By the run's place: numbers (rows) whose mean is the score."""
    rows: int
    notes: list[str]
    read: list[Read] = field(default_factory=list)
    """Each run's predictions of the common rows, in one order."""

    @property
    def step(self) -> float:
        """What one row's difference can come to: 1 for hits, more where rows weigh more."""
        ranges = [float(np.ptp(values)) for values in self.values.values()]
        return max([1.0, *ranges])


def align(runs: Sequence[Run], metric: str, allow_mixed: bool = False) -> Aligned:
    """The rows' scores of the finished runs that have predictions.

    Raises `RunError` where one row has two labels or, unless `allow_mixed`, two texts, and where
    predictions do not give their record's score.
    """
    read, notes = read_all(runs, probabilities=metric == "roc_auc")
    if not read:
        return Aligned({}, 0, notes)
    if len({id(table["row"]) for _, table in read}) > 1:
        check_texts(read, allow_mixed)
        read = common_rows(read, notes)
    if not len(read[0][1]["row"]):
        return Aligned({}, 0, [*notes, "the runs have no test row in common"])
    check_labels(read)
    values = {}
    for run, columns in read:
        found = scored(run, columns, metric)
        if found is None:
            notes.append(f"{run.where}: {metric} cannot be taken apart into its test rows")
            continue
        check_score(run, metric, found)
        values[run.where] = found
    rows = max((len(found) for found in values.values()), default=0)
    return Aligned(values, rows, notes, read)


def read_all(runs: Sequence[Run], probabilities: bool) -> tuple[list[Read], list[str]]:
    """The predictions of all runs, and a note about each that has none or not all."""
    read: list[Read] = []
    notes, places = [], [run.folder for run in runs]
    known = Known()
    with ThreadPoolExecutor(READERS) as pool:  # unpacking and parsing run beside each other

        def table_of(place: Path | None) -> tuple[pyarrow.Table | None, str]:
            if place is None:
                return None, "its folder is out of reach"
            return read_predictions(place, probabilities, known)

        for run, (table, trouble) in zip(runs, pool.map(table_of, places), strict=True):
            if trouble:
                notes.append(f"{run.where}: {trouble}")
            if table is not None:
                columns = {name: table[name] for name in table.column_names}
                read.append((run, shared(columns, read[0][1]) if read else columns))
    return read, notes


def shared(columns: Columns, first: Columns) -> Columns:
    """The columns, with the first run's own in place of those that say the same: a thousand runs
    hold their rows' names once."""
    same = {name: first[name] for name in ("row", "hash", "label")}
    alike = {name: column.equals(same[name]) for name, column in columns.items() if name in same}
    if not (alike["row"] and alike["hash"]):
        return columns
    same["label"] = same["label"] if alike["label"] else columns["label"]
    return {**columns, **same}


def check_texts(read: Sequence[Read], allow_mixed: bool) -> None:
    """Refuse rows of one id and several texts."""
    known: dict[str, tuple[str, str]] = {}
    for run, table in read:
        for row, text in zip(table["row"].to_pylist(), table["hash"].to_pylist(), strict=True):
            where, before = known.setdefault(row, (run.where, text))
            if before != text and not allow_mixed:
                what = f"row {row!r} is another text than in {where}"
                fix = "report runs on the same data, or say --allow-mixed"
                raise RunError("the test rows differ:", [Fault(run.where, f"{what} - {fix}")])


def common_rows(read: Sequence[Read], notes: list[str]) -> list[Read]:
    """Every run's rows that all have, in one order; how many are dropped is noted."""
    keys = [
        dict(
            zip(
                zip(c["row"].to_pylist(), c["hash"].to_pylist(), strict=True), count(), strict=False
            )
        )
        for _, c in read
    ]
    everything: set[Any] = set().union(*keys)
    most = max(keys, key=len)
    common = [key for key in most if all(key in own for own in keys)]
    if len(common) < len(everything):
        pairs = zip(read, keys, strict=True)
        short = [run.where for (run, _), own in pairs if len(own) < len(everything)]
        left = counted(len(everything) - len(common), "test row is", "test rows are")
        notes.append(
            f"{left} not in every run's predictions and dropped, {len(common):,} are compared; "
            f"rows are missing from {listed(short)}"
        )
    places = [np.array([own[key] for key in common], dtype=np.int64) for own in keys]
    return [
        (run, {name: column.take(place) for name, column in c.items()})
        for (run, c), place in zip(read, places, strict=True)
    ]


def check_labels(read: Sequence[Read]) -> None:
    """Refuse runs that call the same row by different labels."""
    base, first = read[0]
    for run, columns in read[1:]:
        if columns["label"] is first["label"] or columns["label"].equals(first["label"]):
            continue
        pairs = zip(first["label"].to_pylist(), columns["label"].to_pylist(), strict=True)
        place, (there, here) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        row = columns["row"][place].as_py()
        what = f"row {row!r} is labelled {here!r}, in {base.where} {there!r}"
        raise RunError("the labels differ:", [Fault(run.where, f"{what} - use one data set")])


def scored(run: Run, columns: Columns, metric: str) -> Floats | None:
    """One run's rows as numbers whose mean is the score; rows without a label are left out."""
    names = run.names
    if columns["label"].null_count:
        kept = np.flatnonzero(np.asarray(columns["label"].is_valid()))
        columns = {name: column.take(kept) for name, column in columns.items()}
    rows = len(columns["label"])
    label_ids, predicted_ids = (ids_of(columns[name], names) for name in ("label", "predicted"))
    if not rows or min(label_ids.min(), predicted_ids.min()) < 0:
        return None
    probabilities = None
    if metric == "roc_auc":
        flat = np.asarray(columns["probabilities"].combine_chunks().flatten(), dtype=float)
        if len(flat) != rows * len(names):
            return None
        probabilities = flat.reshape(rows, len(names))
    return row_scores(metric, label_ids, predicted_ids, probabilities, names)


def ids_of(column: pyarrow.ChunkedArray, names: Sequence[str]) -> NDArray[np.int64]:
    """Labels as ids; -1 for what is none of the names."""
    # pyarrow.array and to_numpy would import pandas, which takes half a second
    encoded = column.combine_chunks().dictionary_encode()
    known = {name: place for place, name in enumerate(names)}
    ids = np.array([known.get(name, -1) for name in encoded.dictionary.to_pylist()] or [-1])
    return np.asarray(ids[np.from_dlpack(encoded.indices)])


def check_score(run: Run, metric: str, values: Floats) -> None:
    """Refuse predictions that are not those which the record's score was made of."""
    score = run.record.scores.get(metric)
    if score is None or score.value is None or len(values) != score.n:
        return  # fewer rows: their score is another one
    found = float(values.mean())
    if not abs(found - score.value) <= (CLOSE if metric != "roc_auc" else 1e-3):
        what = f"give {metric} {found:.6f}, its record says {score.value:.6f}"
        raise RunError(
            "predictions and record do not belong together:",
            [Fault(run.where, f"its predictions {what} - run it again")],
        )
