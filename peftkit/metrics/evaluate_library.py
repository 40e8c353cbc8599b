"""Metrics of the Hugging Face `evaluate` library: `task.metric: evaluate:NAME`."""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Real
from typing import Any

from peftkit.errors import DataError

PREFIX = "evaluate:"
"""What a metric's name begins with where it is one of the library."""


def evaluate_metric(name: str, references: Sequence[Any], predictions: Sequence[Any]) -> Any:
    """The value of `name` (`evaluate:NAME`, or `evaluate:` and a local folder); None for NaN.

    Raises `DataError` where it cannot be loaded or computed, or returns more than one number.
    """
    metric, fix = load_metric(name), "fix the metric's script, or choose another metric"
    try:  # any exception: a metric's code is anyone's, and so are its errors
        result = metric.compute(predictions=list(predictions), references=list(references))
    except Exception as error:
        raise failure(name, error, fix) from error
    numbers = {key: value for key, value in result.items() if isinstance(value, Real)}
    if len(numbers) != 1:
        what = f"{name}: should give one number (got {', '.join(numbers) or 'none'})"
        raise DataError(f"{what} - wrap it in a metric script that gives the one you want")
    [value] = map(float, numbers.values())
    return value if math.isfinite(value) else None


def check_metric(name: str) -> None:
    """Raise `DataError` where `name` is a metric of the library that cannot be loaded."""
    if name.startswith(PREFIX):
        load_metric(name)


@cache
def load_metric(name: str) -> Any:
    """The library's metric; raises `DataError` where it cannot be loaded."""
    from evaluate import load

    try:
        # In memory, or two runs on one machine would wait for each other's cache file.
        return load(name.removeprefix(PREFIX), keep_in_memory=True)
    except Exception as error:
        fix = "it needs the hub or its cache; offline, give the folder of a metric script"
        raise failure(name, error, fix) from error


def failure(name: str, error: Exception, fix: str) -> DataError:
    """The library's error as ours."""
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return DataError(f"{name}: {what} - {fix}")
