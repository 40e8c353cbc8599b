"""Regression of one or several numbers on a text or a pair of texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from peftkit.data.validation import Role
from peftkit.errors import DataError, Fault
from peftkit.metrics.evaluate_library import check_metric
from peftkit.tasks.base import EvalSplit, Predictions, Scored
from peftkit.tasks.embedding_baseline import EmbeddingBaseline
from peftkit.text.pairs import encode_texts

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits

    Floats = NDArray[np.float64]

DIGITS = 12
"""Significant digits of a number that was standardized and back: 3.8 stays 3.8."""


class Regression(EmbeddingBaseline):
    """Regression; targets are standardized in training and predicted in their own units."""

    kind: Literal["regression"] = "regression"
    metric: str = "spearman"
    """The headline score, used for early stopping and comparisons; evaluate:NAME: a metric of the
    `evaluate` library, by its name or the folder of its script."""
    loss_kind: Literal["mse", "huber"] = "mse"
    """mse: the squared error; huber: beyond one standard deviation of the target its size alone."""
    targets: list[str] | None = None
    """Columns of numbers that are learned together, instead of the one column `data.label`."""

    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    peft_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    problem_type: ClassVar[str | None] = "regression"
    trains_head: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "rmse", "mae", "r2")
    scores_functions: ClassVar[bool] = True
    lines: ClassVar[tuple[str, ...]] = ("label", "predicted")
    supports_label_smoothing: ClassVar[bool] = False
    allows_word_augmentation: ClassVar[bool] = True
    untrained_baseline_name: ClassVar[str] = "cosine of embeddings"
    loss_unit: ClassVar[str] = "squared error (train's variance is 1)"

    @field_validator("targets")
    @classmethod
    def _targets_are_columns_of_their_own(cls, targets: list[str] | None) -> list[str] | None:
        for place, name in enumerate(targets or ()):
            if name in {*cls.inputs, "row", "label", "group"}:
                raise ValueError(f"{name!r} is a role of the task - rename the column")
            if name in (targets or ())[:place]:
                raise ValueError(f"{name!r} is named twice - remove one")
        if targets == []:
            raise ValueError("names no column - name one or more, or leave it out")
        return targets

    @property
    def roles(self) -> Mapping[str, bool | Role]:  # type: ignore[override]
        """The texts and the columns of numbers."""
        numbers = dict.fromkeys(self.targets or ["label"], Role(needed=True, cell="number"))
        return {"text": True, "text_pair": False, **numbers}

    @property
    def placeholder_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The targets' names, which need no data."""
        return tuple(self.targets or ["value"])

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The targets' names, once all their values are found to be numbers that vary in train."""
        faults: list[Fault] = []
        for split in ("train", "validation", "test"):
            for role in self.targets or ["label"]:
                faults += number_faults(split, role, getattr(splits, split))
        if faults:
            raise DataError("the targets cannot be used:", faults)
        check_metric(self.metric)
        return self.placeholder_names

    def fit_on_train(self, splits: "Splits") -> dict[str, Any]:
        """Mean and standard deviation of each target over the train split."""
        import numpy as np

        numbers = np.array([numbers_of(splits.train[role]) for role in self.targets or ["label"]])
        return {"mean": numbers.mean(axis=1).tolist(), "deviation": numbers.std(axis=1).tolist()}

    def fitted_state_notes(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """The scale on which the targets are learned."""
        pairs = zip(self.placeholder_names, state["mean"], state["deviation"], strict=True)
        said = ", ".join(f"{name}: {mean:.6g} and {apart:.6g}" for name, mean, apart in pairs)
        return (f"targets are standardized by the mean and standard deviation of train ({said})",)

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The sequence classifiers, with an output a target."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Token ids of the text (and pair), cut at `max_length`; the targets as deviations from
        train's mean, as far as that is known by now, NaN where they are unknown."""
        encoded = encode_texts(rows, tokenizer, max_length)
        count = len(encoded["input_ids"])
        columns = [rows.get(role, [None] * count) for role in self.targets or ["label"]]
        values = zip(*map(numbers_of, columns), strict=True)
        pairs = list(zip(*scale_of(self.fitted_state, len(columns)), strict=True))
        labels = [
            [(v - mean) / apart for v, (mean, apart) in zip(row, pairs, strict=True)]
            for row in values
        ]
        return {**encoded, "labels": labels}

    def encode_for_embeddings(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]] | None:
        """Both texts of a pair, each for itself: first all rows' first, then all their second."""
        if "text_pair" not in rows:
            return None
        texts = [*rows["text"], *rows["text_pair"]]
        pair = encode_texts({"text": texts}, tokenizer, max_length)
        right = self.encode(rows, tokenizer, names, max_length)["labels"]
        del pair["truncated"]
        return {**pair, "labels": [[0] * len(ids) for ids in pair["input_ids"]], "right": right}

    def predict_from_embeddings(
        self,
        shown: "Sequence[np.ndarray]",
        right: Sequence[Any],
        asked: "Sequence[np.ndarray]",
        names: Sequence[str],
    ) -> "list[np.ndarray]":
        """The cosine of both texts' embeddings, put on each target's scale by least squares."""
        import numpy as np
        from sklearn.linear_model import LinearRegression

        known, unknown = map(cosines, (shown, asked))
        return list(LinearRegression().fit(known, np.asarray(right)).predict(unknown))

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum over all known targets of the squared error, or Huber's loss at one deviation,
        both in train's standard deviations."""
        from torch.nn.functional import huber_loss, mse_loss

        known = ~labels.isnan()
        said, right = logits.float()[known], labels.float()[known]
        if self.loss_kind == "huber":
            return huber_loss(said, right, reduction="sum", delta=1.0)
        return mse_loss(said, right, reduction="sum")

    def known(self, labels: "torch.Tensor") -> int:
        """Targets with a value."""
        return int((~labels.isnan()).sum())

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """The standardized predictions, (targets,) each."""
        return list(logits.float().cpu().numpy())

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """Each target's number in its own units."""
        said = in_units(predictions.outputs, given)
        return [dict(zip(given.names, row, strict=True)) for row in said]

    def score(self, predictions: Predictions, given: EvalSplit) -> Scored:
        """Correlations, errors and R2 with intervals; beside them those of train's mean."""
        import numpy as np

        from peftkit.metrics.regression import regression_scores

        right = np.array(in_units(predictions.labels, given))
        rows = np.isfinite(right).all(axis=1)
        if not rows.any():
            raise DataError("no row has a target to be scored against - fill or remove the split")
        said = np.array(in_units(predictions.outputs, given))

        def scored(numbers: "Floats") -> dict[str, Any]:
            return regression_scores(
                right[rows], numbers[rows], given.names, self.metric, given.resamples
            )

        if given.train is None:
            return Scored(scored(said), {})
        mean = scored(np.tile(given.fitted_state["mean"], (len(right), 1)))
        return Scored(scored(said), mean, baselines={"train's mean": mean})

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """The right numbers and the predicted ones, in the targets' order."""
        pairs = (in_units(each, given) for each in (predictions.labels, predictions.outputs))
        for right, said in zip(*pairs, strict=True):
            yield {"label": [None if math.isnan(y) else y for y in right], "predicted": said}

    def row_values(
        self, metric: str, columns: Mapping[str, Any], names: Sequence[str]
    ) -> "Floats | None":
        """The jackknife's share of each row in `metric`."""
        import numpy as np

        from peftkit.metrics.regression import regression_row_values

        right, said = (np.array(list(columns[key]), dtype=float) for key in self.lines)
        return (
            regression_row_values(right, said, metric, names) if np.isfinite(right).all() else None
        )


def cosines(embeddings: "Sequence[np.ndarray]") -> "np.ndarray":
    """Of embeddings of length 1, first all rows' first texts, then all their second: (rows, 1)."""
    import numpy as np

    every = np.concatenate(embeddings)
    found: np.ndarray = np.sum(
        every[: len(every) // 2] * every[len(every) // 2 :], axis=1, keepdims=True
    )
    return found


def number_faults(split: str, role: str, rows: Any) -> Iterator[Fault]:
    """What is no finite number in a column of a split; in train also that nothing varies."""
    where = f"{split}, column of {role!r}"
    values = rows[role][:]
    numbers = numbers_of(values)
    broken = [i for i, number in enumerate(numbers) if not math.isfinite(number)]
    if broken:
        names = rows["row"]
        first = ", ".join(f"{values[i]!r} in {names[i]}" for i in broken[:3])
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        count = "1 row is" if len(broken) == 1 else f"{len(broken)} rows are"
        fix = "write numbers with a point, and fix or remove the rest"
        yield Fault(where, f"{count} no finite number ({first}{more}) - {fix}")
    elif split == "train" and numbers and (what := sameness(numbers)):
        yield Fault(where, what)


def sameness(numbers: Sequence[float]) -> str | None:
    """Why numbers have no spread to be divided by, where they have none."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        spread, size = float(np.std(numbers)), float(np.abs(numbers).max())
    if not math.isfinite(spread):
        return f"holds numbers up to {size:g}, too large to compute with - give them another unit"
    if spread <= 1e-12 * size:
        what = f"all {len(numbers)} rows are {numbers[0]:g}, or too nearly so"
        return f"{what} - there is nothing to learn: provide targets that differ"
    return None


def numbers_of(values: Sequence[Any]) -> list[float]:
    """Numbers, or texts of numbers ('3.5'), as numbers; NaN for what is none."""
    return [number_of(value) for value in values]


def number_of(value: Any) -> float:
    """One number; NaN where there is none."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def scale_of(tuned: Mapping[str, Any], targets: int) -> tuple[list[float], list[float]]:
    """Means and standard deviations of train; of a recipe that was not run, 0 and 1."""
    return tuned.get("mean", [0.0] * targets), tuned.get("deviation", [1.0] * targets)


def in_units(standardized: Sequence[Any], given: EvalSplit) -> list[list[float]]:
    """Deviations from train's mean as numbers in the targets' own units: a list a row."""
    pairs = list(zip(*scale_of(given.fitted_state, len(given.names)), strict=True))
    return [
        [
            float(f"{mean + apart * float(z):.{DIGITS}g}")
            for z, (mean, apart) in zip(row, pairs, strict=True)
        ]
        for row in standardized
    ]
