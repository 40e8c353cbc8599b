"""Multi-label classification of texts or pairs of texts: any number of labels, or none."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from peftkit.data.validation import Role
from peftkit.errors import DataError, Fault
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Scored
from peftkit.tasks.embedding_baseline import EmbeddingBaseline, nearest_centroid
from peftkit.text.pairs import encode_texts, natural_sort_key

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits

    Floats = NDArray[np.float64]

SPLITS = ("train", "validation", "test")
YES, NO = ("1", "1.0", "True", "true"), ("0", "0.0", "False", "false")
"""What says in a column of its own whether a row has a label."""


class Multilabel(EmbeddingBaseline):
    """Multi-label classification; the threshold of each label is fitted on validation rows."""

    kind: Literal["multilabel"] = "multilabel"
    metric: str = "micro_f1"
    """The headline score, used for comparisons."""
    separator: str | None = None
    """What parts the labels where `data.label` holds text instead of lists (';', '|', ',')."""
    columns: Annotated[list[str], Field(min_length=2)] | None = None
    """Columns of 0 and 1, one a label, instead of the one column `data.label`."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["tuned"] = "tuned"
    """From which probability on a row has a label; tuned: each label's own, with the best F1 on the
    validation split, 0.5 without one."""

    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    peft_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    trains_head: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "map", "lrap", "exact_match")
    lines: ClassVar[tuple[str, ...]] = ("label", "predicted", "probabilities")
    fitted_on_validation: ClassVar[tuple[str, ...]] = ("thresholds",)
    allows_word_augmentation: ClassVar[bool] = True

    @field_validator("separator")
    @classmethod
    def _separator_is_a_mark(cls, mark: str | None) -> str | None:
        if mark is not None and (not mark.strip() or mark.strip().isalnum()):
            raise ValueError("should be a mark, as ';', '|' or ','")
        return mark

    @property
    def roles(self) -> Mapping[str, bool | Role]:  # type: ignore[override]
        """The texts and the column, or columns, of labels."""
        own = {"label": Role(needed=True, cell="labels", blank=True)}
        if self.columns is not None:
            own = dict.fromkeys(self.columns, Role(needed=True))
        return {"text": True, "text_pair": False, **own}

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    @property
    def validation_metric(self) -> str:
        """What needs no thresholds, for those are chosen once all is trained."""
        return self.metric if self.metric in ("map", "lrap") else "map"

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names given with the data, or those in train: numbers in their order, else sorted."""
        if self.columns is not None:
            return self._checked(splits, tuple(self.columns))
        train = Counter(each for value in splits.train["label"] for each in self._listed(value))
        names = splits.names or tuple(sorted(train, key=natural_sort_key))
        faults = []
        if self.separator is None and any(isinstance(v, str) for v in splits.train["label"]):
            marks = re.findall(r"[;|,]", " ".join(map(str, splits.train["label"][:1000])))
            usual = max(set(marks), key=marks.count) if marks else ";"
            what = f"holds text, not lists - say what parts its labels: task.separator={usual!r}"
            faults.append(Fault("column of 'label'", what))
        elif len(names) < 2:
            what = f"names {len(names)} labels - two or more are needed (else: task=classification)"
            faults.append(Fault("train, column of 'label'", what))
        if faults:
            raise DataError("the labels cannot be used:", faults)
        return self._checked(splits, names)

    def _checked(self, splits: "Splits", names: tuple[str, ...]) -> tuple[str, ...]:
        faults = []
        for split in SPLITS:
            rows = getattr(splits, split)
            wrong = Counter(
                flaw for value in self._cells(rows) for flaw in self._flaws(value, names)
            )
            for flaw, count in sorted(wrong.items()):
                told = "1 row" if count == 1 else f"{count} rows"
                faults.append(Fault(f"{split}, labels", f"{told}: {flaw}"))
        if not faults and not any(any(self._members(v, names)) for v in self._cells(splits.train)):
            what = "no row has any label - there is nothing to learn"
            faults.append(Fault("train, labels", what))
        if faults:
            raise DataError("the labels cannot be used:", faults)
        return names

    def _cells(self, rows: Mapping[str, Any]) -> Sequence[Any]:
        """What each row says of its labels: one value, or one a column."""
        if self.columns is None:
            return list(rows["label"])
        return list(zip(*(map(str, rows[name]) for name in self.columns), strict=True))

    def _listed(self, value: Any) -> list[str]:
        """The entries of one cell."""
        if isinstance(value, str):
            return [e.strip() for e in value.split(self.separator) if e.strip()]
        return list(value or ())

    def _flaws(self, value: Any, names: Sequence[str]) -> Iterator[str]:
        """What is wrong with one row's labels."""
        if self.columns is not None:
            for cell in sorted({*value} - {*YES, *NO}):
                yield f"{cell!r} is neither 0 nor 1 - write those"
            return
        listed = self._listed(value)
        if is_indicator(listed, names):
            return
        for label in sorted(set(listed) - set(names)):
            hint = "fix the rows, or name all labels in data.labels"
            yield f"{label!r} is not among {', '.join(names[:9])} - {hint}"
        if len(set(listed)) < len(listed):
            hint = "remove it (lists of 0 and 1 need the labels' names: data.labels)"
            yield f"a label is there twice - {hint}"

    def _members(self, value: Any, names: Sequence[str]) -> list[int]:
        """One row's labels as 0 and 1, in the order of the names."""
        if self.columns is not None:
            return [int(cell in YES) for cell in value]
        listed = self._listed(value)
        if is_indicator(listed, names):
            return [int(cell in YES) for cell in listed]
        return [int(name in listed) for name in names]

    def fitted_state_notes(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Which thresholds the scores go by."""
        if "thresholds" in state:
            said = ", ".join(f"{each:.3g}" for each in state["thresholds"])
            return (
                f"thresholds fitted on the validation split, in the order of the labels: {said}",
            )
        if self.threshold != "tuned":
            return (f"every label's threshold is {self.threshold}",)
        return ("every label's threshold is 0.5: there is no validation split to tune it on",)

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
        """Token ids of the text (and pair), cut at `max_length`; 0 or 1 for each label."""
        encoded = encode_texts(rows, tokenizer, max_length)
        needed = self.columns or ["label"]
        if not all(role in rows for role in needed):
            return {**encoded, "labels": [[IGNORE_INDEX] * len(names)] * len(encoded["input_ids"])}
        return {**encoded, "labels": [self._members(cell, names) for cell in self._cells(rows)]}

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of binary cross-entropies over every label of every row."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        known = labels != IGNORE_INDEX
        right = labels[known].float() * (1 - smoothing) + smoothing / 2
        return binary_cross_entropy_with_logits(logits[known].float(), right, reduction="sum")

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """Each label's probability, (labels,) each."""
        return list(logits.float().sigmoid().cpu().numpy())

    def predict_from_embeddings(
        self,
        shown: "Sequence[np.ndarray]",
        right: Sequence[Any],
        asked: "Sequence[np.ndarray]",
        names: Sequence[str],
    ) -> "list[np.ndarray]":
        """Whether a text is nearer to the mean of those with a label than of those without."""
        import numpy as np

        known, unknown = (np.stack([each.ravel() for each in rows]) for rows in (shown, asked))
        found = [nearest_centroid(known, has, unknown, 2)[:, 1] for has in np.asarray(right).T]
        return list(np.stack(found, axis=1))

    def fit_on_validation(self, predictions: Predictions, given: EvalSplit) -> dict[str, Any]:
        """Each label's threshold with the best F1."""
        import numpy as np

        from peftkit.metrics.multilabel import best_thresholds

        if self.threshold != "tuned":
            return {}
        right = np.array(predictions.labels, dtype=bool)
        return {"thresholds": best_thresholds(right, predictions.probabilities.astype(float))}

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """The labels whose probability reaches their threshold, and every label's probability."""
        limits, found = self._limits(given), []
        for row in predictions.outputs:
            sure = dict(zip(given.names, row.tolist(), strict=True))
            said = [n for n, limit in zip(given.names, limits, strict=True) if sure[n] >= limit]
            found.append({"labels": said, "probabilities": sure})
        return found

    def _limits(self, given: EvalSplit) -> list[float]:
        """Each label's threshold."""
        fixed = 0.5 if self.threshold == "tuned" else self.threshold
        return list(given.fitted_state.get("thresholds", [fixed] * len(given.names)))

    def score(self, predictions: Predictions, given: EvalSplit) -> Scored:
        """F1 over all labels and of each, ranking scores and exact matches; beside them those of no
        label at all, and of every label by its share in train."""
        import numpy as np

        from peftkit.metrics.multilabel import multilabel_scores

        right = np.array(predictions.labels, dtype=bool)

        def scored(sure: "Floats", limits: Sequence[float]) -> dict[str, Any]:
            found = multilabel_scores(right, sure >= limits, sure, given.names, given.resamples)
            return {self.metric: found[self.metric]} | found

        scores = scored(predictions.probabilities.astype(float), self._limits(given))
        if given.train is None:
            return Scored(scores, {})
        train = [self._members(cell, given.names) for cell in self._cells(given.train)]
        shares = np.tile(np.mean(train, axis=0), (len(right), 1))
        none = scored(np.zeros(right.shape), [0.5] * len(given.names))
        simple = {"no label": none, "shares in train": scored(shares, [0.5] * len(given.names))}
        return Scored(scores, none, baselines=simple)

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """The right labels' names, those said, and every label's probability in id order."""
        answers = self.answers(predictions, given)
        for label, said in zip(predictions.labels, answers, strict=True):
            yield {
                "label": [name for name, there in zip(given.names, label, strict=True) if there],
                "predicted": said["labels"],
                # 9 digits tell any two numbers of fp32 apart: no ties that were none
                "probabilities": [float(f"{p:.9g}") for p in said["probabilities"].values()],
            }

    def row_values(
        self, metric: str, columns: Mapping[str, Any], names: Sequence[str]
    ) -> "Floats | None":
        """The jackknife's share of each row in `metric`."""
        import numpy as np

        from peftkit.metrics.multilabel import multilabel_row_values

        right, said = (
            np.array([[name in row for name in names] for row in columns[key]])
            for key in ("label", "predicted")
        )
        return multilabel_row_values(
            metric, right, said, np.array(list(columns["probabilities"])), names
        )


def is_indicator(listed: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a list says 0 or 1 of each label, instead of naming those that are there."""
    said = set(listed)
    return len(listed) == len(names) and said <= {*YES, *NO} and not said & set(names)
