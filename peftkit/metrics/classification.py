"""Classification metrics, each with its bootstrap interval over rows.

Values are those of scikit-learn with `zero_division=nan`: a class for which a ratio is 0/0 has no
value, and a macro mean is taken over the classes that have one. An undefined score is None.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from peftkit.errors import DataError, RecipeError, RunError, nearest
from peftkit.metrics.bootstrap import (
    mean_of_defined,
    name_metrics,
    resample_confusion,
    resample_roc_auc,
    score_of,
)
from peftkit.metrics.registry import Score, find_metric
from peftkit.registry import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


class ClassificationScores(Settings):
    """The scores of a classifier, those of the majority class, and the confusion matrix."""

    scores: dict[str, Score]
    """By name, the headline first; of each class as `recall[name]`."""
    confusion: list[list[int]]
    """Numbers of rows, a line for each true class and a column for each predicted one."""
    majority: dict[str, Score]
    """The scores of predicting the majority class for every row; empty where none was given."""


def classification_scores(
    label_ids: Integers,
    probabilities: Floats,
    names: Sequence[str],
    headline: str = "accuracy",
    seed: int = 0,
    resamples: int = 1000,
    majority_class: int | None = None,
) -> ClassificationScores:
    """The scores of `probabilities` (rows, classes) against `label_ids` (rows).

    `headline` may also be a metric with a function of its own (`peftkit.metrics.registry`).
    `majority_class` is the id of the most frequent class of the *training* rows. Raises
    `DataError` for rows that do not match, `RunError` for probabilities that are not finite
    and `RecipeError` for an unknown headline.
    """
    import numpy as np

    check_rows(label_ids, probabilities, names)

    def score(predicted: Floats) -> dict[str, Score]:
        found = score_all(label_ids, predicted, names, seed, resamples)
        if headline not in found:
            found[headline] = headline_score(headline, label_ids, predicted, resamples, found)
        return {headline: found[headline]} | found

    majority = {}
    scores = score(probabilities)
    if majority_class is not None:
        majority = score(np.tile(np.eye(len(names))[majority_class], (len(label_ids), 1)))
    confusion = confusion_matrix(label_ids, probabilities).tolist()
    return ClassificationScores(scores=scores, confusion=confusion, majority=majority)


def headline_score(
    name: str, label_ids: Integers, probabilities: Floats, resamples: int, known: Collection[str]
) -> Score:
    """The score of a metric with a function; raises `RecipeError` where `name` is no such one."""
    from peftkit.metrics.functions import function_score

    metric = find_metric(name)
    if metric.function is None:
        raise RecipeError(f"no metric is called {name!r} - {nearest(name, known)}")
    return function_score(metric, label_ids, probabilities.argmax(axis=1), resamples)


def check_rows(label_ids: Integers, probabilities: Floats, names: Sequence[str]) -> None:
    """Raise `DataError` or `RunError` where labels and probabilities cannot be scored."""
    import numpy as np

    expected = (len(label_ids), len(names))
    if not len(label_ids):
        raise DataError("there are no rows to score - is the split empty?")
    if probabilities.shape != expected:
        raise DataError(f"probabilities should be {expected} (got {probabilities.shape})")
    if len(set(names)) < len(names):
        raise DataError(f"two classes have the same name (got {list(names)}) - rename one")
    if outside := set(label_ids.tolist()) - set(range(len(names))):
        raise DataError(f"label ids {sorted(outside)} are none of the classes {list(names)}")
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        what = f"row {broken[0]}: probabilities {probabilities[broken[0]].tolist()}"
        raise RunError(f"{what} are not numbers - the model diverged, try a lower training.lr")


def score_all(
    label_ids: Integers, probabilities: Floats, names: Sequence[str], seed: int, resamples: int
) -> dict[str, Score]:
    """Every metric by name."""
    import numpy as np

    rng = np.random.default_rng(seed)
    confusion = confusion_matrix(label_ids, probabilities)
    points = points_of(label_ids, probabilities, names)
    areas = resample_roc_auc(label_ids, probabilities, rng, resamples)
    confusions = resample_confusion(confusion, rng, resamples)
    samples = name_metrics(confusions, areas, names)
    return {name: score_of(points[name], samples[name], len(label_ids)) for name in points}


def points_of(label_ids: Integers, probabilities: Floats, names: Sequence[str]) -> dict[str, float]:
    """Every metric by name, as scikit-learn computes it; NaN where undefined."""
    import numpy as np
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    ratios = precision_recall_fscore_support(
        label_ids, predicted, labels=range(len(names)), zero_division=np.nan
    )
    precision, recall, f1 = (np.asarray(each)[None] for each in ratios[:3])
    constant = len(set(label_ids.tolist())) == 1 or len(set(predicted.tolist())) == 1
    macro_f1 = mean_of_defined(f1).item()
    values = {
        "accuracy": float(accuracy_score(label_ids, predicted)),
        "f1": float(f1[0, 1]) if len(names) == 2 else macro_f1,
        "macro_f1": macro_f1,
        "macro_precision": mean_of_defined(precision).item(),
        "macro_recall": mean_of_defined(recall).item(),
        "mcc": math.nan if constant else float(matthews_corrcoef(label_ids, predicted)),
        "roc_auc": area_under_curve(label_ids, probabilities),
    }
    by_class = {"precision": precision, "recall": recall, "f1": f1}
    for i, name in enumerate(names):
        values |= {f"{metric}[{name}]": float(found[0, i]) for metric, found in by_class.items()}
    return values


def area_under_curve(label_ids: Integers, probabilities: Floats) -> float:
    """scikit-learn's ROC-AUC: of class 1 of two; of more classes the one-vs-rest mean."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    ranked = [1] if classes == 2 else range(classes)
    if any((label_ids == i).all() or not (label_ids == i).any() for i in ranked):
        return math.nan
    return float(np.mean([roc_auc_score(label_ids == i, probabilities[:, i]) for i in ranked]))


def confusion_matrix(label_ids: Integers, probabilities: Floats) -> Integers:
    """Numbers of rows, (true class, predicted class)."""
    import numpy as np

    classes = probabilities.shape[1]
    cells = label_ids * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
