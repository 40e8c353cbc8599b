"""Relation extraction: the relation between two marked spans of a text, and its direction."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.data.validation import Occurrences, count_rows
from peftkit.errors import DataError, Fault
from peftkit.metrics.counts import precision_recall_f1
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions
from peftkit.tasks.embedding_baseline import EntityEmbeddingBaseline
from peftkit.tasks.relation_extraction.entity_markers import Marked, MarkerError, marked, with_marks
from peftkit.text.subword_tokens import (
    find_frame,
    insert_markers,
    keep_nearest,
    tokenize_with_spans,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits

    Floats = NDArray[np.float64]

_DIRECTION = re.compile(r"\(e[12],e[12]\)$")
LEAST_ROOM = 8
"""Subword tokens that must fit: one in each span, its two markers, and one next to each."""


class RelationExtraction(EntityEmbeddingBaseline):
    """Relation extraction between the head and the tail of a text: `<e1>..</e1>` and
    `<e2>..</e2>`, or the columns `head` and `tail` ([start, end] in characters).

    Markers around both are tokens of their own, and a head that reads the first token reads both
    opening markers instead, on average (Baldini Soares et al. 2019, entity start).
    """

    kind: Literal["relation_extraction"] = "relation_extraction"
    directed: bool = True
    """Whether 'R(e1,e2)' and 'R(e2,e1)' are two labels; otherwise both are 'R'."""
    other: str | None = "Other"
    """The label that says there is none of the relations: F1 leaves it out; null: there is none."""
    types: list[str] | None = None
    """Types of the parts (columns head_type, tail_type): each gets markers of its own."""

    roles: ClassVar[Mapping[str, bool]] = {
        "text": True,
        "label": True,
        **dict.fromkeys(("head", "tail", "head_type", "tail_type"), False),
    }
    inputs: ClassVar[tuple[str, ...]] = ("text", "head", "tail", "head_type", "tail_type")
    peft_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"
    problem_type: ClassVar[str | None] = "single_label_classification"
    trains_head: ClassVar[bool] = True
    pools_markers: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    lines: ClassVar[tuple[str, ...]] = ("counts",)

    @property
    def headline(self) -> str:
        """F1 as SemEval-2010 Task 8 scores it."""
        return "f1"

    def used_roles(self, there: Collection[str]) -> Collection[str]:
        """All but types that nothing is marked with."""
        return [r for r in there if self.types is not None or not r.endswith("_type")]

    def markers(self) -> tuple[str, ...]:
        """Those around the head and the tail, for each type its own."""
        kinds = [""] if self.types is None else [f":{kind}" for kind in self.types]
        ends = ("<e1{}>", "</e1{}>", "<e2{}>", "</e2{}>")
        return tuple(end.format(kind) for kind in kinds for end in ends)

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names given with the data, or those in train, by the alphabet."""
        there = {
            n: rows for n in ("train", "validation", "test") if len(rows := getattr(splits, n))
        }
        faults = [fault for name, rows in there.items() for fault in self._unmarked(name, rows)]
        labels = {name: self._labels(rows) for name, rows in there.items()}
        given = map(self._label, splits.names or sorted(set(labels["train"])))
        names = tuple(dict.fromkeys(given))
        for name, column in labels.items():
            for label, count in sorted(Counter(column).items()):
                if label not in names:
                    what = f"{count} rows have the label {label!r}, which train never has"
                    fix = "fix or remove the rows, or name all labels in data.labels"
                    faults.append(Fault(f"{name}, column of 'label'", f"{what} - {fix}"))
        if len(names) < 2:
            what = f"all rows have the label {names[0]!r} - two or more are needed"
            faults.append(Fault("train, column of 'label'", what))
        if self.other is not None and self.other not in names:
            what = f"no row has the label {self.other!r} (there are {', '.join(names)})"
            fix = "name the one that says there is no relation, or set task.other=null"
            faults.append(Fault("task.other", f"{what} - {fix}"))
        if faults:
            raise DataError("the relations cannot be used:", faults)
        return names

    def encoding_notes(self, splits: "Splits", examples: Mapping[str, Any]) -> tuple[str, ...]:
        """How many texts are cut."""
        cut = {name: sum(found["truncated"]) for name, found in examples.items()}
        return tuple(
            f"{name}: {count} of {len(examples[name])} texts are cut to what is next to the marks"
            for name, count in cut.items()
            if count
        )

    def _label(self, label: str) -> str:
        return label if self.directed else _DIRECTION.sub("", label)

    def _labels(self, rows: Any) -> list[str]:
        return [self._label(label) for label in rows["label"]]

    def _unmarked(self, split: str, rows: Any) -> list[Fault]:
        """Rows whose head and tail cannot be told, by the reason."""
        found: dict[str, Occurrences] = {}
        for name, *cells in zip(rows["row"], *self._cells(rows), strict=True):
            try:
                self._read(*cells)
            except MarkerError as error:
                found.setdefault(str(error), Occurrences()).add(name)
        return [Fault(f"{split}, {count_rows(places)}", why) for why, places in found.items()]

    def _cells(self, rows: Any) -> list[Sequence[Any]]:
        """The columns of the inputs, of nothing where there are none."""
        there = getattr(rows, "column_names", rows)
        nothing = [None] * len(rows["text"])
        return [rows[role] if role in there else nothing for role in self.inputs]

    def _read(self, text: str, head: Any, tail: Any, *types: Any) -> tuple[Marked, list[str]]:
        """The text's two parts and the markers' ends; raises `MarkerError`."""
        if self.types is None:
            return marked(text, head, tail), ["", ""]
        for role, kind in zip(("head_type", "tail_type"), types, strict=True):
            if kind is None:
                raise MarkerError(f"there is no {role} - name its column, or leave task.types out")
            if kind not in self.types:
                known = ", ".join(self.types)
                raise MarkerError(f"{role} {kind!r} is none of task.types ({known}) - add it there")
        return marked(text, head, tail), [f":{kind}" for kind in types]

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
        """Token ids with markers around both parts; of a text that is too long the tokens that are
        next to them. `read` says where the opening markers stand."""
        frame = find_frame(tokenizer)
        room = frame.room(max_length, LEAST_ROOM)
        ids_of = {name: index for index, name in enumerate(names)}
        labels = self._labels(rows) if "label" in rows else [""] * len(rows["text"])
        read = self._all_read(rows)
        pieces = tokenize_with_spans(tokenizer, [found.text for found, _ in read])
        columns: dict[str, list[Any]] = {}
        for (found, kinds), own, label in zip(read, pieces, labels, strict=True):
            numbers: list[Any] = [
                tokenizer.convert_tokens_to_ids(f"<{end}e{number}{kind}>")
                for number, kind in enumerate(kinds, 1)
                for end in ("", "/")
            ]
            ids, places = insert_markers(own, (found.head, found.tail), numbers)
            kept = keep_nearest(places, len(ids), room)
            example: dict[str, Any] = {
                **frame.around([ids[place] for place in kept]),
                "labels": ids_of.get(label, IGNORE_INDEX),
                "truncated": len(kept) < len(ids),
                "read": [kept.index(places[i]) + len(frame.before) for i in (0, 2)],
            }
            for key, value in example.items():
                columns.setdefault(key, []).append(value)
        return columns

    def _all_read(self, rows: Any) -> list[tuple[Marked, list[str]]]:
        """Every row's parts; raises `DataError` where some cannot be told."""
        found, faults = [], []
        for number, cells in enumerate(zip(*self._cells(rows), strict=True), 1):
            try:
                found.append(self._read(*cells))
            except MarkerError as error:
                faults.append(Fault(f"text {number}", str(error)))
        if faults:
            raise DataError("the relations cannot be read:", faults)
        return found

    def texts_as_read(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The texts with the markers around both parts."""
        return [with_marks(found, kinds) for found, kinds in self._all_read(rows)]

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of cross-entropies over the examples with a label."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(
            logits.float(),
            labels,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )

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

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """The most frequent label of train for every row."""
        usual = Counter(self._labels(given.train)).most_common(1)[0][0]
        return {"majority": [{"label": usual}] * len(given.rows)}

    def relations(self, names: Sequence[str]) -> list[str]:
        """The relations without their direction, in the order of the labels."""
        plain = [_DIRECTION.sub("", name) for name in names if name != self.other]
        return list(dict.fromkeys(plain))

    def counts(self, answers: Sequence[Mapping[str, Any]], given: EvalSplit) -> "Floats":
        """Of each relation whether it is found with its direction, is said and is there in either;
        behind them whether the label is right, and 1."""
        import numpy as np

        places = {relation: i for i, relation in enumerate(self.relations(given.names))}
        gold = self._labels(given.rows)
        found = np.zeros((len(gold), 3, len(places)))
        right = np.array(
            [answer["label"] == label for answer, label in zip(answers, gold, strict=True)]
        )
        for row, (answer, label) in enumerate(zip(answers, gold, strict=True)):
            for kind, name in (
                (0, label if right[row] else self.other),
                (1, answer["label"]),
                (2, label),
            ):
                place = places.get(_DIRECTION.sub("", name or ""))
                if name != self.other and place is not None:
                    found[row, kind, place] = 1
        rest = np.stack([right, np.ones(len(gold))], axis=1)
        return np.concatenate([found.reshape(len(gold), -1), rest], axis=1)

    def totals(self, sums: "Floats", names: Sequence[str]) -> "dict[str, Floats]":
        """The official scores of SemEval-2010 Task 8: (9+1)-way, with direction, without Other.

        Each relation counts once for both directions, and the wrong one is an error of precision
        and of recall (Hendrickx et al. 2010, section 4); f1, precision and recall are means over
        the relations, a ratio of 0 to 0 being 0.
        """
        relations = self.relations(names)
        hits, said, there = (
            sums[:, i * len(relations) : (i + 1) * len(relations)] for i in range(3)
        )
        precision, recall, f1 = precision_recall_f1(hits, said, there, nothing=0.0)
        pooled = precision_recall_f1(hits.sum(1), said.sum(1), there.sum(1), nothing=0.0)
        scores = {
            "f1": f1.mean(axis=1),
            "precision": precision.mean(axis=1),
            "recall": recall.mean(axis=1),
            "micro_f1": pooled[2],
            "accuracy": sums[:, -2] / sums[:, -1],
        }
        for index, name in enumerate(relations):
            scores |= {
                f"precision[{name}]": precision[:, index],
                f"recall[{name}]": recall[:, index],
                f"f1[{name}]": f1[:, index],
            }
        return scores

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """The label's name, the predicted one's, the probabilities in id order, and the counts."""
        answers = self.answers(predictions, given)
        gold = self._labels(given.rows)
        for answer, label, counts in zip(answers, gold, self.counts(answers, given), strict=True):
            yield {
                "label": label,
                "predicted": answer["label"],
                "probabilities": [round(float(p), 6) for p in answer["probabilities"].values()],
                "counts": [int(count) for count in counts],
            }
