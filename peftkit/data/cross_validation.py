"""Cross-validation: all labeled rows are divided into folds, one of which is scored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.data.reading import FileSplits
from peftkit.data.sampling import derive_seed
from peftkit.data.splits import class_ids
from peftkit.errors import DataError, Fault

if TYPE_CHECKING:
    import datasets
    import numpy as np

GROUP = "group"
"""Role of the column whose equal values are kept together; not read by any task."""


class Fold(NamedTuple):
    """One fold of a cross-validation."""

    take: int
    """Its index, from 0."""
    of: int


def select_fold(found: FileSplits, fold: Fold, seed: int) -> FileSplits:
    """Return one fold as the test split and all other rows as train; the files' own splits are
    merged first.

    Folds are stratified by label, and rows of a group are in one fold. Raises `DataError` if a
    class has fewer rows or groups than there are folds.
    """
    from datasets import concatenate_datasets

    rows = concatenate_datasets(list(found.splits.values()))
    classes = class_ids(rows)
    learned, scored = split_fold(rows, classes, fold, seed)
    kept = rows.remove_columns(GROUP) if GROUP in rows.column_names else rows
    notes = [f"fold {fold.take} of {fold.of}: {len(scored)} of {rows.num_rows} rows are scored"]
    if len(found.splits) > 1:
        notes.append(f"cross-validation splits the rows of {', '.join(found.splits)} again")
    if left := set(classes.tolist()) - set(classes[scored].tolist()):
        names = sorted(str(rows["label"][classes.tolist().index(each)]) for each in left)
        notes.append(f"fold {fold.take} has no row labeled {', '.join(names)}")
    splits = {"train": kept.select(learned), "test": kept.select(scored)}
    return replace(found, splits=splits, notes=(*found.notes, *notes))


def split_fold(
    rows: datasets.Dataset, classes: np.ndarray, fold: Fold, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the rows to train on and to score, in the order of the files."""
    import numpy as np

    groups = np.asarray(rows[GROUP], dtype=str) if GROUP in rows.column_names else None
    check_fold_sizes(rows, classes, groups, fold.of)
    splitter = make_splitter(fold.of, len(set(classes.tolist())) > 1, groups is not None, seed)
    dealt = list(splitter.split(np.zeros(rows.num_rows), classes, groups))
    learned, scored = dealt[fold.take]
    return sorted(learned.tolist()), sorted(scored.tolist())


def make_splitter(folds: int, stratified: bool, grouped: bool, seed: int) -> Any:
    """Return scikit-learn's splitter for such rows."""
    from sklearn import model_selection

    chosen = {
        (False, False): model_selection.KFold,
        (True, False): model_selection.StratifiedKFold,
        (False, True): model_selection.GroupKFold,
        (True, True): model_selection.StratifiedGroupKFold,
    }[stratified, grouped]
    return chosen(folds, shuffle=True, random_state=derive_seed(seed, "folds") % 2**32)


def check_fold_sizes(rows: datasets.Dataset, classes: np.ndarray, groups: Any, folds: int) -> None:
    """Raise `DataError` if there are more folds than rows, or groups, of the smallest class."""
    units = range(rows.num_rows) if groups is None else groups.tolist()
    of_class: dict[int, dict[Any, int]] = {}  # the groups of each class, each with a row of it
    for row, (each, unit) in enumerate(zip(classes.tolist(), units, strict=True)):
        of_class.setdefault(each, {}).setdefault(unit, row)
    smallest = min(of_class.values(), key=len)
    count = len(smallest)
    if count >= folds:
        return
    label = rows["label"][next(iter(smallest.values()))] if len(of_class) > 1 else None
    whose = "there are" if label is None else f"label {label!r} has"
    things = ("row" if groups is None else "group") + ("" if count == 1 else "s")
    fix = f"use data.folds={count}" if count > 1 else "give more rows, or remove that label"
    what = f"is {folds}, but {whose} only {count} {things} - {fix}"
    raise DataError("the data is too small:", [Fault("data.folds", what)])
