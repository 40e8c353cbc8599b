"""Metrics that are a function of targets and predictions: scores, intervals and row values."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.errors import DataError, PeftkitError
from peftkit.metrics.bootstrap import score_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peftkit.metrics.registry import Metric, Score

    Floats = NDArray[np.float64]


def function_score(
    metric: Metric, y_true: NDArray[Any], y_pred: NDArray[Any], resamples: int, seed: int = 0
) -> Score:
    """The metric of `y_pred` against `y_true`, (rows,) or (rows, targets), with its interval.

    Of several targets it is the mean. Raises `DataError` where the function fails on all rows.
    """
    value = evaluated(metric, y_true, y_pred)
    rng, rows = np.random.default_rng(seed), len(y_true)
    samples = (rng.integers(rows, size=rows) for _ in range(resamples))
    values = [defined_or_nan(metric, y_true[chosen], y_pred[chosen]) for chosen in samples]
    return score_of(value, np.asarray(values, dtype=float), rows)


def function_row_values(
    metric: Metric, y_true: NDArray[Any], y_pred: NDArray[Any]
) -> Floats | None:
    """The jackknife's pseudo-value of each row, (rows,), whose mean is the score; None where the
    metric, or the metric without some row, is undefined."""
    rows = len(y_true)
    pairs = np.column_stack([y_true, y_pred])
    _, first, kind = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    whole = defined_or_nan(metric, y_true, y_pred)
    # rows with the same target and prediction have the same value
    left = [defined_or_nan(metric, np.delete(y_true, i, 0), np.delete(y_pred, i, 0)) for i in first]
    values = (rows * whole - (rows - 1) * np.asarray(left))[kind.ravel()]
    return values - values.mean() + whole if np.isfinite(values).all() else None


def evaluated(metric: Metric, y_true: NDArray[Any], y_pred: NDArray[Any]) -> float:
    """The function's value, its mean over several targets; NaN where it is undefined."""
    assert metric.function is not None
    columns = zip(np.atleast_2d(y_true.T), np.atleast_2d(y_pred.T), strict=True)
    try:  # a metric's function is anyone's, and so are its errors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [metric.function(true, predicted) for true, predicted in columns]
    except PeftkitError:
        raise
    except Exception as error:
        what = f"metric {metric.name!r}: {type(error).__name__}: {error}"
        raise DataError(f"{what} - fix its function, or choose another task.metric") from error
    return float(np.mean([math.nan if value is None else value for value in found]))


def defined_or_nan(metric: Metric, y_true: NDArray[Any], y_pred: NDArray[Any]) -> float:
    """The function's value; NaN where it fails, as on a sample that lacks a class."""
    try:
        return evaluated(metric, y_true, y_pred)
    except DataError:
        return math.nan
