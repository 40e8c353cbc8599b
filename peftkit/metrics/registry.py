"""The registry of metrics: one row for each, with its direction, range and unit.

`register` adds a row, also from a plug-in. A row with a `function` can be a recipe's `task.metric`:

    register(Metric("kappa", "Cohen's kappa", range=(-1, 1), function=cohen_kappa_score))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from peftkit.errors import Fault, RecipeError
from peftkit.metrics.evaluate_library import PREFIX, evaluate_metric
from peftkit.registry import Settings

INFINITY = math.inf


class Score(Settings):
    """One number with its 95 % bootstrap interval over rows; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    """Number of rows that were scored."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it measures and how its values are read."""

    name: str
    """Its name in records and as `task.metric`; `f1[CLASS]` stands for each class's own."""
    description: str
    higher_is_better: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    """The smallest and the largest value that it can have."""
    unit: str = ""
    """The unit of its values; empty where they have none."""
    is_continuous: bool = False
    """Whether it compares numbers rather than hits: two models then differ in every row."""
    function: Callable[[Any, Any], float | None] | None = None
    """The value for `(y_true, y_pred)`, as in `sklearn.metrics`: arrays of class ids, or of numbers
    in a regression. None: the task computes it together with its other scores."""

    @property
    def best(self) -> float | None:
        """The perfect score of a metric of which more is better; None where there is none."""
        top = self.range[1]
        return top if self.higher_is_better and math.isfinite(top) else None


METRICS: dict[str, Metric] = {}
"""Every registered metric by name."""


def register(metric: Metric) -> Metric:
    """Add `metric` to the registry and return it.

    Raises `RecipeError` where another metric has the same name.
    """
    known = METRICS.setdefault(metric.name, metric)
    if known != metric:
        what = f"two metrics are called {metric.name!r} - rename one"
        raise RecipeError("a name is taken twice:", [Fault("metrics", what)])
    return metric


def find_metric(name: str) -> Metric:
    """The metric called `name`, or the one of which `name` is a class's or a target's value.

    `evaluate:NAME` is a metric of the `evaluate` library, of unknown range. Of a name that is not
    registered more is better, up to 1.
    """
    known = METRICS.get(name) or METRICS.get(plain_name(name))
    if known is not None:
        return known
    if name.startswith(PREFIX):
        range, function = (-INFINITY, INFINITY), partial(evaluate_metric, name)
        return Metric(name, "", range=range, function=function)
    return Metric(name, "")


def plain_name(metric: str) -> str:
    """The metric without its class or target: `rmse` for `rmse[price]`."""
    return metric.partition("[")[0]


def gain(metric: str, value: float) -> float:
    """`value` as a number of which more is better."""
    return value if find_metric(metric).higher_is_better else -value


def error_metric(name: str, description: str, unit: str) -> Metric:
    """A metric of which less is better, from 0 without an upper end."""
    return Metric(name, description, False, (0.0, INFINITY), unit, is_continuous=True)


for row in (
    Metric("accuracy", "share of rows (or words) with the right label"),
    Metric("f1", "F1 of class 1 of two classes; else macro F1; of entities the micro F1"),
    Metric("macro_f1", "mean over classes of F1"),
    Metric("macro_precision", "mean over classes of precision"),
    Metric("macro_recall", "mean over classes of recall (balanced accuracy)"),
    Metric("mcc", "Matthews correlation coefficient, for any number of classes", range=(-1.0, 1.0)),
    Metric("roc_auc", "area under the ROC curve of class 1; one-vs-rest mean of several classes"),
    Metric("precision[CLASS]", "share of the rows predicted as CLASS that are of it"),
    Metric("recall[CLASS]", "share of the rows of CLASS that are predicted as it"),
    Metric("f1[CLASS]", "harmonic mean of precision and recall of CLASS"),
    Metric("spearman", "rank correlation of predictions and targets; mean over the targets",
           range=(-1.0, 1.0), is_continuous=True),
    Metric("pearson", "linear correlation of predictions and targets",
           range=(-1.0, 1.0), is_continuous=True),
    error_metric("rmse", "root mean squared error, in the target's unit", "target units"),
    error_metric("mae", "mean absolute error, in the target's unit", "target units"),
    Metric("r2", "share of the targets' variance that is predicted",
           range=(-INFINITY, 1.0), is_continuous=True),
    Metric("micro_f1", "F1 over all pairs of row and label"),
    Metric("map", "mean over labels of the average precision of rows ranked by probability"),
    Metric("lrap", "label ranking average precision: how high a row's right labels are ranked"),
    Metric("exact_match", "share of rows in which everything is right"),
    error_metric("bits_per_byte", "cross-entropy per byte (UTF-8) of the text", "bits per byte"),
    error_metric("perplexity", "exponential of the mean cross-entropy per token", ""),
    error_metric("loss", "mean cross-entropy per token, in nats", "nats"),
    Metric("chrf", "F2 of character n-grams up to 6, from 0 to 100 (sacrebleu)",
           range=(0.0, 100.0)),
    Metric("bleu", "BLEU: word n-grams up to 4 with brevity penalty, from 0 to 100 (sacrebleu)",
           range=(0.0, 100.0)),
    Metric("rouge1", "mean over rows of the F1 of stemmed words (rouge-score)"),
    Metric("rouge2", "mean over rows of the F1 of stemmed word pairs (rouge-score)"),
    Metric("rougeL", "mean over rows of the F1 of the longest common subsequence (rouge-score)"),
    Metric("evaluate:NAME", "a metric of the evaluate library, by name or local folder "
           "(text_classification, regression); more is better"),
):  # fmt: skip
    register(row)
