"""The scores of all runs on the same test rows, matched by row id and hash of the text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.errors import Fault, RunError
from peftkit.reporting.analysis.jackknife import row_scores
from peftkit.reporting.analysis.prediction_files import read_predictions
from peftkit.reporting.analysis.records import Run, counted, listed
from peftkit.reporting.analysis.scales import Scale

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

    from peftkit.tasks.base import Task

    Floats = NDArray[np.float64]
    Columns = dict[str, pyarrow.ChunkedArray]
    Read = tuple[Run, Columns]

READERS = min(4, os.cpu_count() or 1)
"""Prediction files that are read at once."""
CLOSE = 1e-6
"""Tolerance between two computations of a score: numbers are stored with 6 digits."""
ROUGH = 1e-3
"""Tolerance for ranked rows, and rows scored from rounded numbers."""


@dataclass(frozen=True)
class AlignedScores:
    """The score of each run on each of the rows that all runs have."""

    values: dict[str, Floats]
    """By run: an array (rows) whose mean is the score."""
    rows: int
    notes: list[str]
    read: list[Read] = field(default_factory=list)
    """Each run's predictions of the common rows, in the same order."""
    scale: Scale = field(default_factory=lambda: Scale("accuracy"))

    @property
    def step(self) -> float:
        """The largest difference of one row's values: 1 for hits, more if rows weigh more; almost
        nothing for continuous scores."""
        values, least = self.values.values(), self.scale.smallest_step
        if least is None:
            return CLOSE * max((float(np.abs(each).max()) for each in values), default=1.0) or CLOSE
        return max([least, *(float(np.ptp(each)) for each in values)])


def align_rows(runs: Sequence[Run], metric: str, allow_mixed: bool = False) -> AlignedScores:
    """The row scores of the finished runs that have predictions.

    Raises `RunError` if a row has two labels or, unless `allow_mixed`, two texts, or if
    predictions do not give the score in their record.
    """
    read, notes = read_all(runs, metric)
    if not read:
        return AlignedScores({}, 0, notes)
    if len({id(table["row"]) for _, table in read}) > 1:
        check_texts(read, allow_mixed)
        read = common_rows(read, notes)
    if not len(read[0][1]["row"]):
        return AlignedScores({}, 0, [*notes, "the runs have no test row in common"])
    check_labels(read)
    read = rows_with_counts(read, metric)
    values = {}
    for run, columns in read:
        found = scored(run, columns, metric)
        if found is None:
            notes.append(f"{run.where}: {metric} cannot be computed by test row")
            continue
        check_score(run, metric, found)
        values[run.where] = found
    rows = max((len(found) for found in values.values()), default=0)
    return AlignedScores(values, rows, notes, read, Scale(metric))


def read_all(runs: Sequence[Run], metric: str) -> tuple[list[Read], list[str]]:
    """The predictions of all runs, and notes on those that are missing or incomplete."""
    read: list[Read] = []
    notes: list[str] = []
    with ThreadPoolExecutor(READERS) as pool:  # unpacking and parsing release the GIL

        def table_of(run: Run) -> tuple[pyarrow.Table | None, str]:
            if run.folder is None:
                return None, "its directory is not known"
            if run.task is None:
                return None, f"its task {run.record.recipe['task']['kind']!r} is not known"
            if run.task.has_label_names:
                return read_predictions(run.folder, metric == "roc_auc")
            return read_predictions(run.folder, False, run.task.lines)

        for run, (table, problem) in zip(runs, pool.map(table_of, runs), strict=True):
            if problem:
                notes.append(f"{run.where}: {problem}")
            if table is not None:
                columns = {name: table[name] for name in table.column_names}
                read.append((run, shared(columns, read[0][1]) if read else columns))
    return read, notes


def shared(columns: Columns, first: Columns) -> Columns:
    """The columns, equal ones replaced by the first run's: a thousand runs store row names once."""
    same = {name: first[name] for name in ("row", "hash", "label") if name in first}
    alike = {name: column.equals(same[name]) for name, column in columns.items() if name in same}
    if not (alike["row"] and alike["hash"]):
        return columns
    return {**columns, **{name: same[name] for name, equal in alike.items() if equal}}


def check_texts(read: Sequence[Read], allow_mixed: bool) -> None:
    """Raise `RunError` if rows with the same id have different texts."""
    known: dict[str, tuple[str, str]] = {}
    for run, table in read:
        for row, text in zip(table["row"].to_pylist(), table["hash"].to_pylist(), strict=True):
            where, before = known.setdefault(row, (run.where, text))
            if before != text and not allow_mixed:
                what = f"row {row!r} has another text than in {where}"
                fix = "report runs on the same data, or use --allow-mixed"
                raise RunError("the test rows differ:", [Fault(run.where, f"{what} - {fix}")])


def common_rows(read: Sequence[Read], notes: list[str]) -> list[Read]:
    """The rows that all runs have, in the same order; notes how many are dropped."""
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
    """Raise `RunError` if the same row has different labels in two runs."""
    labeled = [(run, columns) for run, columns in read if "label" in columns]
    if not labeled:
        return
    base, first = labeled[0]
    for run, columns in labeled[1:]:
        if columns["label"] is first["label"] or columns["label"].equals(first["label"]):
            continue
        pairs = zip(first["label"].to_pylist(), columns["label"].to_pylist(), strict=True)
        place, (there, here) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        row = columns["row"][place].as_py()
        what = f"row {row!r} is labeled {here!r}, in {base.where} {there!r}"
        raise RunError("the labels differ:", [Fault(run.where, f"{what} - use one data set")])


def rows_with_counts(read: list[Read], metric: str) -> list[Read]:
    """The rows whose counts all runs have, if the score needs counts (only rows with a generated
    text have them); else all rows."""
    first, columns = read[0]
    if "counts" not in columns or scored(first, columns, metric) is not None:
        return read
    known = np.ones(len(columns["row"]), dtype=bool)
    for _, own in read:
        if "counts" in own:
            lacking = (row is None or None in row for row in own["counts"].to_pylist())
            known &= ~np.fromiter(lacking, dtype=bool, count=len(known))
    kept = np.flatnonzero(known)
    if not len(kept):
        return read
    return [(run, {name: c.take(kept) for name, c in own.items()}) for run, own in read]


def scored(run: Run, columns: Columns, metric: str) -> Floats | None:
    """One run's row values, whose mean is the score; rows without a label are left out."""
    names, task = run.names, run.task
    if task is not None and not task.has_label_names:
        return task_scores(run, task, columns, metric)
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


def task_scores(run: Run, task: Task, columns: Columns, metric: str) -> Floats | None:
    """One run's row values as its task computes them."""
    plain = {name: plain_column(column) for name, column in columns.items() if name in task.lines}
    found = task.row_values(metric, plain, run.names)
    return found if found is not None and np.isfinite(found).all() else None


def plain_column(column: pyarrow.ChunkedArray) -> Any:
    """A column as a list; lists of numbers of one length as an array (rows, numbers)."""
    import pyarrow

    kind = column.type
    if not (pyarrow.types.is_list(kind) and pyarrow.types.is_floating(kind.value_type)):
        return column.to_pylist()
    whole = column.combine_chunks()
    lengths = np.asarray(whole.value_lengths())
    if len(lengths) and (lengths == lengths[0]).all() and not whole.flatten().null_count:
        return np.asarray(whole.flatten(), dtype=float).reshape(len(lengths), -1)
    return column.to_pylist()


def ids_of(column: pyarrow.ChunkedArray, names: Sequence[str]) -> NDArray[np.int64]:
    """Labels as ids; -1 for a label that is none of `names`."""
    # pyarrow.array and to_numpy would import pandas, which takes half a second
    encoded = column.combine_chunks().dictionary_encode()
    known = {name: place for place, name in enumerate(names)}
    ids = np.array([known.get(name, -1) for name in encoded.dictionary.to_pylist()] or [-1])
    return np.asarray(ids[np.from_dlpack(encoded.indices)])


def check_score(run: Run, metric: str, values: Floats) -> None:
    """Raise `RunError` if predictions do not give the score in their record."""
    score = run.record.scores.get(metric)
    if score is None or score.value is None or len(values) != score.n:
        return  # fewer rows have another score
    found, task = float(values.mean()), run.task
    exact = (
        task is not None
        and metric != "roc_auc"
        and (task.has_label_names or "counts" in task.lines)
    )
    if not abs(found - score.value) <= (CLOSE if exact else ROUGH) * max(1.0, abs(found)):
        what = f"give {metric} {found:.6f}, its record has {score.value:.6f}"
        raise RunError(
            "predictions and record do not match:",
            [Fault(run.where, f"its predictions {what} - run it again")],
        )
