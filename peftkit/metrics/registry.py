"""Scores of predictions, each with the interval that resampling its rows gives.

The counted metrics follow scikit-learn with `zero_division=nan`: a class for which a ratio is 0/0
has no value, and a macro mean is taken over the classes that have one. Undefined is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING

from peftkit.errors import DataError, RecipeError, RunError, nearest
from peftkit.metrics.bootstrap import (
    mean_of_defined,
    name_metrics,
    resample_confusion,
    resample_roc_auc,
)
from peftkit.registry import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

METRICS: Mapping[str, str] = {
    "accuracy": "share of rows whose most probable class is the right one",
    "f1": "F1 of class 1 of two; macro F1 of more, and of relations; over all entities",
    "macro_f1": "mean over classes of F1",
    "macro_precision": "mean over classes of precision",
    "macro_recall": "mean over classes of recall (balanced accuracy)",
    "mcc": "Matthews correlation coefficient, of any number of classes",
    "roc_auc": "area under the ROC curve of class 1 of two; one against the rest, macro, of more",
    "precision[CLASS]": "share of the rows called CLASS that are",
    "recall[CLASS]": "share of the rows of CLASS that are called so",
    "f1[CLASS]": "harmonic mean of precision and recall of CLASS",
    "spearman": "rank correlation of predicted and right numbers; of several targets their mean",
    "pearson": "linear correlation of predicted and right numbers",
    "rmse": "root of the mean squared error, in the target's units",
    "mae": "mean absolute error, in the target's units",
    "r2": "share of the right numbers' variance that is predicted",
    "micro_f1": "F1 over all pairs of row and label",
    "map": "mean over labels of the average precision of rows ranked by the label's probability",
    "lrap": "of a row's right labels, the mean share of right ones among those ranked as high",
    "exact_match": "share of rows of which everything is right",
    "bits_per_byte": "cross-entropy of the right text, by its bytes (UTF-8)",
    "perplexity": "exponential of the mean cross-entropy of a token",
    "loss": "mean cross-entropy of a token of the right text, in nats",
    "chrf": "F2 of character n-grams up to 6, of 100 (sacrebleu)",
    "bleu": "word n-grams up to 4 with a penalty for brevity, of 100 (sacrebleu)",
    "rouge1": "mean over rows of the F1 of words, stemmed (rouge-score)",
    "rouge2": "mean over rows of the F1 of pairs of words, stemmed (rouge-score)",
    "rougeL": "mean over rows of the F1 of the longest common subsequence (rouge-score)",
    "evaluate:NAME": "a metric of the evaluate library, by its name or its local folder",
}
"""What each metric measures, by name."""


LOWER_IS_BETTER = frozenset({"bits_per_byte", "perplexity", "loss", "rmse", "mae"})
"""Scores of which less is better; of all others more is."""
PERCENT = frozenset({"chrf", "bleu"})
"""Scores that go up to 100; most others go up to 1."""
SMOOTH = LOWER_IS_BETTER | {"pearson", "spearman", "r2"}
"""Scores of numbers rather than of hits: no two models agree on a row to the last digit."""


def gain(metric: str, value: float) -> float:
    """The value as a number of which more is better."""
    return -value if plain_name(metric) in LOWER_IS_BETTER else value


def plain_name(metric: str) -> str:
    """The metric without the class or the target that it is taken of: `rmse[price]` is `rmse`."""
    return metric.partition("[")[0]


class Score(Settings):
    """One number with its 95 % bootstrap interval over rows; what is undefined is None."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    """How many rows were scored."""


class ClassificationScores(Settings):
    """What a classifier's probabilities are worth on labeled rows."""

    scores: dict[str, Score]
    """By name, the headline first; per class as `recall[name]`."""
    confusion: list[list[int]]
    """How many rows of class i (the line) were given class j (the column)."""
    majority: dict[str, Score]
    """The same scores for always answering the majority class; empty where none was named."""


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

    `majority_class` is the id of the most frequent class of the *training* rows. Raises
    `DataError` for rows that do not fit together, `RunError` for probabilities that are not numbers
    and `RecipeError` for a headline that no metric is called.
    """
    import numpy as np

    check_rows(label_ids, probabilities, names)
    scores = score_all(label_ids, probabilities, names, seed, resamples)
    if headline not in scores:
        raise RecipeError(f"no metric is called {headline!r} - {nearest(headline, scores)}")
    scores = {headline: scores[headline]} | scores
    majority = {}
    if majority_class is not None:
        constant = np.tile(np.eye(len(names))[majority_class], (len(label_ids), 1))
        majority = score_all(label_ids, constant, names, seed, resamples)
        majority = {headline: majority[headline]} | majority
    confusion = confusion_matrix(label_ids, probabilities).tolist()
    return ClassificationScores(scores=scores, confusion=confusion, majority=majority)


def evaluate_metric(
    name: str, predictions: Sequence[object], references: Sequence[object]
) -> float | None:
    """What the `evaluate` library's metric `name` (or local folder) gives; NaN becomes None.

    Raises `DataError` where it cannot be loaded, computed, or gives more than one number.
    """
    from evaluate import load

    path = name.removeprefix("evaluate:")
    fix = "it needs the hub or its cache; offline, give the folder of a metric script"
    try:  # any exception: a metric's code is anyone's, and so are its errors
        # In memory, or two runs on one machine would wait for each other's cache file.
        metric = load(path, keep_in_memory=True)
        fix = "mend the metric's script, or choose one for this task's predictions"
        result = metric.compute(predictions=list(predictions), references=list(references))
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise DataError(f"evaluate:{path}: {told} - {fix}") from error
    return single_number(path, result or {})


def check_rows(label_ids: Integers, probabilities: Floats, names: Sequence[str]) -> None:
    """Refuse rows that do not fit together."""
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
        told = f"row {broken[0]}: probabilities {probabilities[broken[0]].tolist()}"
        raise RunError(f"{told} are not numbers - the model diverged, try a lower training.lr")


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
    draws = name_metrics(confusions, areas, names)
    return {name: score_of(points[name], draws[name], len(label_ids)) for name in points}


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
    """scikit-learn's ROC-AUC: of class 1 of two; of more, one against the rest, their mean."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    ranked = [1] if classes == 2 else range(classes)
    if any((label_ids == i).all() or not (label_ids == i).any() for i in ranked):
        return math.nan
    return float(np.mean([roc_auc_score(label_ids == i, probabilities[:, i]) for i in ranked]))


def confusion_matrix(label_ids: Integers, probabilities: Floats) -> Integers:
    """Rows of class i that were given class j: (classes, classes)."""
    import numpy as np

    classes = probabilities.shape[1]
    cells = label_ids * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def score_of(value: float, draws: Floats, rows: int) -> Score:
    """`value` with its percentile interval, over the resamples in which the metric is defined."""
    import numpy as np

    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or rows < 2 or not len(defined):  # one row cannot say how others vary
        return Score(value=None if math.isnan(value) else value, n=rows)
    low, high = np.percentile(defined, (2.5, 97.5)).tolist()
    return Score(value=value, low=low, high=high, n=rows)


def single_number(path: str, result: Mapping[str, object]) -> float | None:
    """The one number in what an `evaluate` metric returned."""
    numbers = {key: value for key, value in result.items() if isinstance(value, Real)}
    if len(numbers) != 1:
        told = f"evaluate:{path}: should give one number (got {', '.join(numbers) or 'none'})"
        raise DataError(f"{told} - wrap it in a metric script that gives the one you want")
    [value] = map(float, numbers.values())
    return value if math.isfinite(value) else None
