"""Token classification: a tag for every word, such as named entities or parts of speech."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt

from peftkit.errors import DataError, Fault
from peftkit.metrics.bootstrap import mean_of_defined
from peftkit.metrics.counts import precision_recall_f1
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Reading
from peftkit.tasks.embedding_baseline import WordEmbeddingBaseline
from peftkit.tasks.token_classification.rows import (
    Sentence,
    columns_in,
    listed,
    located,
    marking_names,
    plain_names,
    sentence_of,
    sentences_in,
    tagged,
    tags_of,
    unpaired,
)
from peftkit.tasks.token_classification.schemes import (
    OUTSIDE,
    Entity,
    best_path,
    entities,
    marks_entities,
    misplaced,
    tag_names,
    to_iob2,
    types_in,
)
from peftkit.text.subword_tokens import (
    Span,
    align_words,
    choose_window,
    find_frame,
    find_unknown_id,
    split_windows,
    tokenize_with_spans,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits

    Floats = NDArray[np.float64]

UNKNOWN = -1
"""The label of a word whose tag is not known, at its first subword token."""


class TokenClassification(WordEmbeddingBaseline):
    """Token classification: named entities, parts of speech, ..."""

    kind: Literal["token_classification"] = "token_classification"
    scheme: Literal["auto", "iob1", "iob2", "bilou", "iobes", "none"] = "auto"
    """How tags say where entities are; auto finds it out from train. Learned and answered is IOB2.
    none: the tags say nothing of entities (parts of speech)."""
    stride: NonNegativeInt | Literal["auto"] = "auto"
    """Tokens that neighboring windows of a text longer than `data.max_length` share; auto: half a
    window. A word's tag is from the window that shows most around it."""
    decoding: Literal["best_path", "greedy"] = "best_path"
    """best_path: the most probable well-formed tags; greedy: each word's most probable tag."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ner": {}, "pos": {"scheme": "none"}}
    roles: ClassVar[Mapping[str, bool]] = {"tokens": True, "tags": True}
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    peft_type: ClassVar[str] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str] = "token-classification"
    trains_head: ClassVar[bool] = True
    reading: ClassVar[Reading] = "tokens"
    placeholder_names: ClassVar[tuple[str, ...]] = tag_names(("LOC", "MISC", "ORG", "PER"))
    lines: ClassVar[tuple[str, ...]] = ("counts",)

    @property
    def headline(self) -> str:
        """F1 over all entities; accuracy where there are none."""
        return "accuracy" if self.scheme == "none" else "f1"

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The tags: those of IOB2 for all types of entities, or the plain ones.

        Names given with the data count too, so that train need not have each.
        """
        parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
        there = {name: rows for name, rows in parts.items() if len(rows)}
        if faults := [fault for name, rows in there.items() for fault in unpaired(name, rows)]:
            raise DataError("words and tags cannot be used:", faults)
        tags = {name: tags_of(rows) for name, rows in there.items()}
        declared = splits.names or ()
        if self.scheme == "none":
            names, faults = plain_names(tags, declared)
        else:
            names, faults = marking_names(tags, declared, self.scheme)
        if len(names) < 2:
            what = f"all words have the tag {names[0]!r} - two or more are needed"
            faults.append(Fault("train, column of 'tags'", what))
        if faults:
            raise DataError("the tags cannot be used:", faults)
        return names

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The token classifiers."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """The words' subword tokens, in windows where there are more than `max_length`; a word's
        label is at its first subword token, in one window."""
        frame = find_frame(tokenizer)
        room = frame.room(max_length)
        sentences = sentences_in(rows)
        texts = [" ".join(sentence.words) for sentence in sentences]
        unknown = find_unknown_id(tokenizer)
        ids_of = {name: index for index, name in enumerate(names)}
        gold = self._gold(rows, names) or [[""] * len(each.words) for each in sentences]
        columns: dict[str, list[Any]] = {}
        for row, pieces in enumerate(tokenize_with_spans(tokenizer, texts)):
            spans = sentence_of(sentences[row].words).spans
            ids, firsts = align_words(pieces, texts[row], spans, unknown)
            labels = [ids_of.get(tag, UNKNOWN) for tag in gold[row]]
            for window, placed in self._windows(firsts, labels, len(ids), room):
                own = frame.around(ids[slice(*window)])
                of_own = [IGNORE_INDEX] * len(own["input_ids"])
                for place, label in placed:
                    of_own[place - window[0] + len(frame.before)] = label
                example = {**own, "labels": of_own, "truncated": False, "of": row}
                for key, value in example.items():
                    columns.setdefault(key, []).append(value)
        return columns

    def _windows(
        self, firsts: Sequence[int], labels: Sequence[int], length: int, room: int
    ) -> Iterator[tuple[Span, list[tuple[int, int]]]]:
        """Each window with the words that it answers: where they begin, and their labels."""
        words = list(zip(firsts, labels, strict=True))
        if length <= room:
            yield (0, length), words
            return
        stride = room // 2 if self.stride == "auto" else self.stride
        if stride >= room:
            what = f"is {stride}, and a window has {room} tokens - use {room - 1} or less, or auto"
            raise DataError("the windows do not move on:", [Fault("task.stride", what)])
        among = list(split_windows(length, room, stride))
        chosen: dict[int, list[tuple[int, int]]] = {}
        for word in words:
            chosen.setdefault(choose_window(word[0], among, length), []).append(word)
        for index in sorted(chosen):
            yield among[index], chosen[index]

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of cross-entropies over the words with a tag."""
        from torch.nn.functional import cross_entropy

        known = labels.masked_fill(labels < 0, IGNORE_INDEX)
        return cross_entropy(
            logits.float(),
            known,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def known(self, labels: "torch.Tensor") -> int:
        """Words with a tag."""
        return int((labels >= 0).sum())

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """Softmax over the tags for each word that the example answers: (words, tags)."""
        every = logits.float().softmax(dim=-1)
        parts = zip(every.split(list(sizes)), labels.split(list(sizes)), strict=True)
        return [said[own != IGNORE_INDEX].cpu().numpy() for said, own in parts]

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """Each word's tag; of entities the type, the place, the words, their least probable tag."""
        said: dict[int, list[np.ndarray]] = {}
        for row, output in zip(given.examples["of"], predictions.outputs, strict=True):
            said.setdefault(int(row), []).append(output)
        sentences = sentences_in(given.rows)
        return [
            self._answer(said[row], sentence, given.names) for row, sentence in enumerate(sentences)
        ]

    def _answer(
        self, said: "list[np.ndarray]", sentence: Sentence, names: Sequence[str]
    ) -> dict[str, Any]:
        import numpy as np

        probabilities = np.concatenate(said)
        ids = probabilities.argmax(axis=-1).tolist()
        marking = self.marks(names)
        # well-formed and each the best: then no other path is better
        if marking and self.decoding == "best_path" and misplaced([names[i] for i in ids], "iob2"):
            with np.errstate(divide="ignore"):
                ids = best_path(np.log(probabilities.astype(float)), names)
        tags = [names[index] for index in ids]
        answer: dict[str, Any] = {"words": sentence.words, "tags": tags}
        if marking:
            sure = [float(row[index]) for row, index in zip(probabilities, ids, strict=True)]
            answer["entities"] = [located(each, sentence, sure) for each in entities(tags)]
        return answer

    def marks(self, names: Sequence[str]) -> bool:
        """Whether these tags say where entities are."""
        return self.scheme != "none" and marks_entities(names)

    def _gold(self, rows: Any, names: Sequence[str]) -> list[list[str]] | None:
        """The right tags of each row, those of entities as IOB2; None where there are none."""
        if "tags" not in columns_in(rows):
            return None
        tags = [[str(tag) for tag in listed(row)] for row in rows["tags"]]
        return [to_iob2(row) for row in tags] if self.marks(names) else tags

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """The most frequent tag for all words ('O'), or for each word the one it has in train."""
        train: dict[str, Counter[str]] = {}
        learned = self._gold(given.train, given.names) or []
        for (_, words, _), tags in zip(tagged(given.train), learned, strict=True):
            for word, tag in zip(words, tags, strict=True):
                train.setdefault(str(word), Counter())[tag] += 1
        total = sum(train.values(), Counter[str]())
        marking = self.marks(given.names)
        constant = OUTSIDE if marking else total.most_common(1)[0][0]
        usual = {word: counts.most_common(1)[0][0] for word, counts in train.items()}
        rows = [sentence.words for sentence in sentences_in(given.rows)]
        looked_up = [[usual.get(word, constant) for word in words] for words in rows]
        looked_up = list(map(to_iob2, looked_up)) if marking else looked_up
        return {
            f"all_{constant}": [{"tags": [constant] * len(words)} for words in rows],
            "most_frequent_tag": [{"tags": tags} for tags in looked_up],
        }

    def counts(self, answers: Sequence[Mapping[str, Any]], given: EvalSplit) -> "Floats":
        """Of each type or plain tag how many are found rightly, are said and are there; behind them
        words with the right tag, and words."""
        import numpy as np

        kinds = self._kinds(given.names)
        gold = self._gold(given.rows, given.names) or []
        found = np.zeros((len(gold), 3 * len(kinds) + 2))
        for counts, answer, right in zip(found, answers, gold, strict=True):
            there, said = self._units(right, given.names), self._units(answer["tags"], given.names)
            sums = [Counter(unit.type for unit in units) for units in (there & said, said, there)]
            same = sum(a == b for a, b in zip(right, answer["tags"], strict=True))
            counts[:] = [*(each[kind] for each in sums for kind in kinds), same, len(right)]
        return found

    def _kinds(self, names: Sequence[str]) -> list[str]:
        """What is counted apart: types of entities, or the plain tags."""
        return types_in(names) if self.marks(names) else list(names)

    def _units(self, tags: Sequence[str], names: Sequence[str]) -> set[Entity]:
        """What is found or missed: entities, or each word's tag."""
        if self.marks(names):
            return set(entities(tags))
        return {Entity(tag, place, place + 1) for place, tag in enumerate(tags)}

    def totals(self, sums: "Floats", names: Sequence[str]) -> "dict[str, Floats]":
        """Entities: precision, recall and F1 over all, by type and as the mean of types, as seqeval
        gives them; plain tags: accuracy and F1 by tag, as scikit-learn."""
        kinds = self._kinds(names)
        hits, said, there = (sums[:, i * len(kinds) : (i + 1) * len(kinds)] for i in range(3))
        precision, recall, f1 = precision_recall_f1(hits, said, there)
        scores = {"accuracy": sums[:, -2] / sums[:, -1], "macro_f1": mean_of_defined(f1)}
        if self.marks(names):
            whole = precision_recall_f1(hits.sum(1), said.sum(1), there.sum(1), nothing=0.0)
            both = dict(zip(("precision", "recall", "f1"), whole, strict=True))
            scores = {"f1": both["f1"], **both, **scores}
        each = {"precision": precision, "recall": recall, "f1": f1}
        for index, kind in enumerate(kinds):
            scores |= {f"{name}[{kind}]": found[:, index] for name, found in each.items()}
        return scores

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """Each word's right tag and the one that was said; and the counts."""
        answers = self.answers(predictions, given)
        gold = self._gold(given.rows, given.names) or []
        for answer, counts, tags in zip(answers, self.counts(answers, given), gold, strict=True):
            told = counts.astype(int).tolist()
            yield {"tags": tags, "predicted": answer["tags"], "counts": told}
