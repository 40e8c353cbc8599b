"""Sampling of training rows by class: few-shot subsets and oversampling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.errors import DataError, Fault

if TYPE_CHECKING:
    import datasets
    import numpy as np


def sample_few_shot(rows: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """Return `count` rows per class, sampled by the seed, in the order of the file; a larger sample
    contains a smaller one.

    Raises `DataError` that lists all classes with fewer rows.
    """
    classes = shuffle_classes(rows, seed, "few-shot")
    short = [f"{name!r} has {len(own)}" for name, own in classes.items() if len(own) < count]
    if short:
        most = min(map(len, classes.values()))
        what = f"is {count}, but of the training rows label {', '.join(short)} - use {most} or less"
        raise DataError("the data is too small:", [Fault("data.few_shot", what)])
    return rows.select(sorted(index for own in classes.values() for index in own[:count]))


def oversample(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """Return all rows, followed by repeated rows of rarer classes until each has as many as the
    largest: every row is repeated equally often, up to one repetition."""
    classes = shuffle_classes(rows, seed, "oversample")
    most = max(map(len, classes.values()))
    again = [own[i % len(own)] for own in classes.values() for i in range(most - len(own))]
    return rows.select([*range(rows.num_rows), *sorted(again)])


def shuffle_classes(rows: datasets.Dataset, seed: int, purpose: str) -> dict[str, list[int]]:
    """Return the row indices of each class in random order, with classes sorted by name."""
    import numpy as np

    order: np.ndarray = np.random.default_rng(derive_seed(seed, purpose)).permutation(rows.num_rows)
    labels: Sequence[str] = rows["label"][:]
    found: dict[str, list[int]] = {name: [] for name in sorted(set(labels))}
    for index in order.tolist():
        found[labels[index]].append(index)
    return found


def derive_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big")
