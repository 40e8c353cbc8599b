"""Classification of texts or pairs of texts into two or more classes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat, field_validator

from peftkit.errors import DataError, Fault
from peftkit.metrics.evaluate_library import check_metric
from peftkit.tasks.base import EvalSplit, Predictions, Scored
from peftkit.tasks.embedding_baseline import EmbeddingBaseline
from peftkit.tasks.zero_shot import ZeroShotSettings
from peftkit.text.pairs import encode_texts, natural_sort_key

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits


class TextClassification(EmbeddingBaseline):
    """Classification: one label for a text or a pair of texts."""

    kind: Literal["text_classification"] = "text_classification"
    metric: str = "accuracy"
    """The headline score, used for early stopping and comparisons; evaluate:NAME: a metric of the
    `evaluate` library, by its name or the folder of its script."""
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] | None = None
    """What a row of each class counts in the loss: none: all the same; balanced: the more, the
    rarer its class is in train; or a number a label. Scaled to be 1 on average over train."""
    zero_shot: ZeroShotSettings | None = None
    """Prompts for the zero-shot baseline with a causal model; null: the default prompt."""

    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True}
    peft_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    problem_type: ClassVar[str | None] = "single_label_classification"
    trains_head: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "macro_f1", "mcc")
    scores_functions: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    allows_word_augmentation: ClassVar[bool] = True
    added_settings: ClassVar[tuple[str, ...]] = ("class_weights", "untrained_baseline", "zero_shot")
    lines: ClassVar[tuple[str, ...]] = ("label", "predicted")
    has_label_names: ClassVar[bool] = True

    @field_validator("class_weights")
    @classmethod
    def _none_is_unset(cls, weights: Any) -> Any:
        return None if weights == "none" else weights

    def zero_shot_settings(self) -> ZeroShotSettings:
        """As `prompting` says."""
        return self.zero_shot or ZeroShotSettings()

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names given with the data, or those in train: numbers in their order, else sorted."""
        train = Counter(splits.train["label"])
        names = splits.names or tuple(sorted(train, key=natural_sort_key))
        faults = []
        if len(train) < 2:
            only = next(iter(train), "none")
            what = f"all {len(splits.train)} rows have the label {only!r} - two or more are needed"
            faults.append(Fault("train, column of 'label'", what))
        for split in ("train", "validation", "test"):
            seen = Counter(getattr(splits, split)["label"])
            for label in sorted(set(seen) - set(names if split == "train" else train)):
                known = ", ".join(
                    names if split == "train" else sorted(train, key=natural_sort_key)
                )
                what = f"{seen[label]} rows have the label {label!r}, which is not one of {known}"
                fix = "fix the rows or name it in data.labels"
                if split != "train":
                    fix = "train does not have it, so it cannot be learned: fix or remove the rows"
                faults.append(Fault(f"{split}, column of 'label'", f"{what} - {fix}"))
        if isinstance(self.class_weights, dict) and set(self.class_weights) != set(names):
            what = f"should weigh {', '.join(names)} (got {', '.join(self.class_weights)})"
            faults.append(Fault("task.class_weights", f"{what} - give each of them a number"))
        if self.zero_shot is not None:
            faults += self.zero_shot.faults(names, splits.train.column_names)
        if faults:
            raise DataError("the labels cannot be used:", faults)
        check_metric(self.metric)
        return names

    def fit_on_train(self, splits: "Splits") -> dict[str, Any]:
        """The classes' weights in id order, where any are asked for: as given, or 1 / rows, scaled
        so that the mean over the rows of train is 1."""
        if self.class_weights is None:
            return {}
        rows = Counter(splits.train["label"])
        names = self.label_names(splits)
        if self.class_weights == "balanced":  # a class that train lacks is in no loss
            weights = {name: 1 / max(1, rows[name]) for name in names}
        else:
            weights = dict(self.class_weights)  # type: ignore[arg-type]
        scale = rows.total() / sum(rows[name] * weights[name] for name in names)
        return {"class_weights": [weights[name] * scale for name in names]}

    def fitted_state_notes(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """The classes' weights."""
        said = ", ".join(f"{weight:.4g}" for weight in state.get("class_weights", ()))
        return (f"losses are weighted by class, in the order of their ids: {said}",) if said else ()

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The sequence classifiers."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Token ids of the text (and pair), cut at `max_length`; the label's id, -1 if unknown."""
        encoded = encode_texts(rows, tokenizer, max_length)
        ids = {name: index for index, name in enumerate(names)}
        labels = rows.get("label", [None] * len(encoded["input_ids"]))
        return {**encoded, "labels": [ids.get(label, -1) for label in labels]}

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of cross-entropies over the examples with a label, each times its class's weight.

        Weights are 1 on average over the train rows (`learned`), so that the sum over a batch,
        divided by its number of rows, is the weighted mean; whatever the micro-batches.
        """
        import torch
        from torch.nn.functional import cross_entropy

        weights = self.fitted_state.get("class_weights")
        if weights is None:
            return cross_entropy(
                logits.float(), labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing
            )
        known = labels >= 0
        losses = cross_entropy(
            logits[known].float(), labels[known], reduction="none", label_smoothing=smoothing
        )
        return (losses * torch.tensor(weights, device=losses.device)[labels[known]]).sum()

    def known(self, labels: "torch.Tensor") -> int:
        """Examples with a label."""
        return int((labels >= 0).sum())

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """Softmax over the labels, (classes,) each."""
        return list(logits.float().softmax(dim=-1).cpu().numpy())

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """The most probable label, and every label's probability."""
        said = [
            dict(zip(given.names, row.tolist(), strict=True)) for row in predictions.probabilities
        ]
        return [{"label": max(row, key=row.__getitem__), "probabilities": row} for row in said]

    def score(self, predictions: Predictions, given: EvalSplit) -> Scored:
        """Accuracy, F1, MCC, ROC-AUC, macro and per class, and the majority class's."""
        from peftkit.metrics.classification import classification_scores

        found = classification_scores(
            predictions.label_ids,
            predictions.probabilities,
            given.names,
            majority_class=None if given.train is None else majority(given),
            headline=self.metric,
            resamples=given.resamples,
        )
        simple = {"majority class": found.majority} if found.majority else {}
        details = {"confusion": found.confusion}
        return Scored(found.scores, found.majority, details, simple)

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """The label's name, the predicted one's, and the probabilities in id order."""
        names = given.names
        for label, said in zip(predictions.label_ids, predictions.probabilities, strict=True):
            yield {
                "label": names[label] if label >= 0 else None,
                "predicted": names[int(said.argmax())],
                "probabilities": [round(float(p), 6) for p in said],
            }


def majority(given: EvalSplit) -> int:
    """The id of the most frequent label of the train split; the lowest of several."""
    counts = Counter(given.train["label"])
    return max(range(len(given.names)), key=lambda index: counts[given.names[index]])
