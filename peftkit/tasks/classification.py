"""Sequence classification: one text or a pair of texts, one of two or more labels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.errors import DataError, Fault
from peftkit.tasks import Given, Predictions, Scored, Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data import Splits


class Classification(Task):
    """Which of the labels a text, or a pair of texts, has."""

    kind: Literal["classification"] = "classification"
    metric: Literal["accuracy", "f1", "macro_f1", "mcc"] = "accuracy"
    """The headline score, which early stopping and comparisons go by."""

    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True}
    peft_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    trains_head: ClassVar[bool] = True

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names given with the data, or those in train: numbers in their order, else sorted."""
        train = Counter(splits.train["label"])
        names = splits.names or tuple(sorted(train, key=natural_order))
        faults = []
        if len(train) < 2:
            only = next(iter(train), "none")
            what = f"all {len(splits.train)} rows have the label {only!r} - two or more are needed"
            faults.append(Fault("train, column of 'label'", what))
        for split in ("train", "validation", "test"):
            seen = Counter(getattr(splits, split)["label"])
            for label in sorted(set(seen) - set(names if split == "train" else train)):
                known = ", ".join(names if split == "train" else sorted(train, key=natural_order))
                what = f"{seen[label]} rows have the label {label!r}, which is not among {known}"
                fix = "mend the rows or name it in data.labels"
                if split != "train":
                    fix = "train never has it, so it cannot be learned: mend or leave out the rows"
                faults.append(Fault(f"{split}, column of 'label'", f"{what} - {fix}"))
        if faults:
            raise DataError("the labels cannot be used:", faults)
        return names

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
        texts = [rows["text"]] + ([rows["text_pair"]] if "text_pair" in rows else [])
        whole = tokenizer(*texts, verbose=False)
        columns = {k: whole[k] for k in ("input_ids", "token_type_ids") if k in whole}
        long = [i for i, tokens in enumerate(whole["input_ids"]) if len(tokens) > max_length]
        if long:
            again = [[text[i] for i in long] for text in texts]
            cut = tokenizer(*again, truncation=True, max_length=max_length)
            for key, column in columns.items():
                for row, tokens in zip(long, cut[key], strict=True):
                    column[row] = tokens
        cut_rows = set(long)
        ids = {name: index for index, name in enumerate(names)}
        labels = rows.get("label", [None] * len(texts[0]))
        return {
            **columns,
            "labels": [ids.get(label, -1) for label in labels],
            "truncated": [row in cut_rows for row in range(len(labels))],
        }

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of cross-entropies over the examples with a label."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(
            logits.float(), labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing
        )

    def known(self, labels: "torch.Tensor") -> int:
        """Examples with a label."""
        return int((labels >= 0).sum())

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """Softmax over the labels, (classes,) each."""
        return list(logits.float().softmax(dim=-1).cpu().numpy())

    def answers(self, predictions: Predictions, given: Given) -> list[dict[str, Any]]:
        """The most probable label, and every label's probability."""
        said = [
            dict(zip(given.names, row.tolist(), strict=True)) for row in predictions.probabilities
        ]
        return [{"label": max(row, key=row.__getitem__), "probabilities": row} for row in said]

    def score(self, predictions: Predictions, given: Given) -> Scored:
        """Accuracy, F1, MCC, ROC-AUC, macro and per class, and the majority class's."""
        from peftkit.metrics import classification_scores

        found = classification_scores(
            predictions.label_ids,
            predictions.probabilities,
            given.names,
            majority_class=None if given.train is None else majority(given),
            headline=self.metric,
            resamples=given.resamples,
        )
        return Scored(found.scores, found.majority, {"confusion": found.confusion})

    def prediction_lines(self, predictions: Predictions, given: Given) -> Iterator[dict[str, Any]]:
        """The label's name, the predicted one's, and the probabilities in id order."""
        names = given.names
        for label, said in zip(predictions.label_ids, predictions.probabilities, strict=True):
            yield {
                "label": names[label] if label >= 0 else None,
                "predicted": names[int(said.argmax())],
                "probabilities": [round(float(p), 6) for p in said],
            }


def majority(given: Given) -> int:
    """The id of the most frequent label of the train split; the lowest of several."""
    counts = Counter(given.train["label"])
    return max(range(len(given.names)), key=lambda index: counts[given.names[index]])


def natural_order(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before words by the alphabet."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
