"""Extractive question answering: the span of a context that answers a question, if any."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from peftkit.errors import DataError
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Reading, Task
from peftkit.tasks.question_answering.decoding import Considered, considered
from peftkit.tasks.question_answering.scoring import (
    best_match,
    best_threshold,
    most_alike,
    sentences_of,
)
from peftkit.tasks.question_answering.spans import Span, answers_in
from peftkit.tasks.question_answering.validation import faults_of, notes_of, survey
from peftkit.tasks.question_answering.windows import (
    cut_question,
    room_of,
    spans_to_learn,
    windows_of,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits

    Floats = NDArray[np.float64]

SPLITS = ("train", "validation", "test")
NO_ANSWER: Mapping[str, Any] = {"text": "", "start": None, "end": None, "score": None}
BITS = 20
"""Of each number in a label: more than the tokens of any window."""


class QuestionAnswering(Task):
    """Extractive question answering (SQuAD: Rajpurkar et al. 2016, 2018).

    Long contexts are read in windows that overlap. A window without the answer points to its first
    token ([CLS]; of a model that has none, whatever token its tokenizer puts or finds first).
    """

    kind: Literal["question_answering"] = "question_answering"
    unanswerable: bool = False
    """Whether a question may have no answer (as in SQuAD 2.0), which is then an answer too."""
    unfound: Literal["forbid", "drop"] = "forbid"
    """What to do with rows none of whose answers is in the context: refuse them, or leave them out
    of training; they are scored all the same."""
    stride: NonNegativeInt | Literal["auto"] = "auto"
    """Tokens that neighboring windows of a context share; auto: a third of data.max_length."""
    question_length: PositiveInt | Literal["auto"] = "auto"
    """Tokens that a question is cut to; auto: a quarter of data.max_length."""
    max_answer_length: PositiveInt = 30
    """Tokens that an answer has at most."""
    n_best: PositiveInt = 1
    """How many of the best answers to a question `predict` tells."""

    roles: ClassVar[Mapping[str, bool]] = {
        "question": True,
        "context": True,
        "answers": True,
        "id": False,
    }
    inputs: ClassVar[tuple[str, ...]] = ("question", "context")
    peft_type: ClassVar[str] = "QUESTION_ANS"
    pipeline_tag: ClassVar[str] = "question-answering"
    trains_head: ClassVar[bool] = True
    reading: ClassVar[Reading] = "tokens"
    placeholder_names: ClassVar[tuple[str, ...]] = ()
    lines: ClassVar[tuple[str, ...]] = ("counts",)
    fitted_on_validation: ClassVar[tuple[str, ...]] = ("threshold",)

    @property
    def headline(self) -> str:
        """F1 of the words."""
        return "f1"

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """None: answers are no classes."""
        faults = [
            fault
            for split in SPLITS
            for fault in faults_of(
                survey(getattr(splits, split), split), self.unanswerable, self.unfound
            )
        ]
        if faults:
            raise DataError("the answers cannot be used:", faults)
        return ()

    def encoding_notes(self, splits: "Splits", examples: Mapping[str, Any]) -> tuple[str, ...]:
        """What was repaired, dropped, cut and left unused."""
        return tuple(
            note
            for split in SPLITS
            for note in notes_of(survey(getattr(splits, split), split), examples[split])
        )

    def configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """Two outputs a token: how well an answer starts there, and how well it ends there."""
        return {"num_labels": 2, "problem_type": None}

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The models that find spans."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Windows: `of` says of which row, `context` which of its tokens is the first of the
        context, `starts` and `ends` where those from there on stand in it, in characters;
        `truncated` is whether the question was cut."""
        room = room_of(tokenizer, max_length, self.question_length, self.stride)
        questions = [cut_question(text, tokenizer, room.question) for text in rows["question"]]
        windows = windows_of(questions, rows["context"], tokenizer, room)
        cells = rows["answers"] if "answers" in rows else [None] * len(questions)
        answers = [None if cell is None else answers_in(cell) for cell in cells]
        spans = spans_to_learn(windows, rows["context"], answers, self.unanswerable)
        cut = [said != asked for said, asked in zip(questions, rows["question"], strict=True)]
        return {
            **{key: [window.columns[key] for window in windows] for key in windows[0].columns},
            "labels": [labels_of(w.length, span) for w, span in zip(windows, spans, strict=True)],
            "truncated": [cut[window.of] for window in windows],
            **{key: [getattr(w, key) for w in windows] for key in ("of", "context")},
            **{key: [getattr(w, key) for w in windows] for key in ("starts", "ends")},
        }

    def logits(self, output: Any) -> "torch.Tensor":
        """How well an answer starts, and ends, at each token: (tokens, 2)."""
        import torch

        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum over windows of the mean of two cross-entropies, of start and end, each over all
        tokens of the window (Devlin et al. 2019, section 4.2); padding is no candidate."""
        from torch.nn.functional import cross_entropy

        total = logits[:0].float().sum()
        for first, length, span in labeled(labels):
            window = logits[first : first + length].float().T
            right = labels.new_tensor(span)
            total = total + cross_entropy(window, right, reduction="sum", label_smoothing=smoothing)
        return total / 2

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """The two logits of each token, (tokens, 2) a window."""
        return [part.cpu().numpy() for part in logits.float().split(list(sizes))]

    def considered(self, predictions: Predictions, given: EvalSplit) -> list[Considered]:
        """What may be said of each row."""
        longest, count = self.max_answer_length, self.n_best
        contexts = list(given.rows["context"])
        return considered(given.examples, predictions.outputs, contexts, longest, count)

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """The best span's text as it stands in the context, where it begins and ends there, and its
        score; where questions may have no answer, by how much that outscores it (`margin`), and no
        text where that is more than the threshold chosen on the validation split."""
        contexts = given.rows["context"]
        return [
            self.answer(context, each, float(given.fitted_state.get("threshold", 0.0)))
            for context, each in zip(contexts, self.considered(predictions, given), strict=True)
        ]

    def answer(self, context: str, each: Considered, threshold: float) -> dict[str, Any]:
        """What is said of one row."""
        nothing = not each.spans or (self.unanswerable and each.margin > threshold)
        said = dict(NO_ANSWER) if nothing else spoken(context, each.spans[0])
        if self.unanswerable:
            margin = each.margin if each.spans else None  # JSON knows no infinity
            said |= {"score": each.nothing if nothing else said["score"], "margin": margin}
        if self.n_best > 1:
            said["candidates"] = [spoken(context, span) for span in each.spans[: self.n_best]]
        return said

    def fit_on_validation(self, predictions: Predictions, given: EvalSplit) -> dict[str, Any]:
        """How much no answer must outscore the best span by to be given: best for F1."""
        import numpy as np

        if not self.unanswerable:
            return {}
        said = self.considered(predictions, given)
        texts = [
            spoken(context, each.spans[0]) if each.spans else dict(NO_ANSWER)
            for context, each in zip(given.rows["context"], said, strict=True)
        ]
        counts = self.counts(texts, given)
        margins = np.array([each.margin for each in said])
        return {"threshold": best_threshold(margins, counts[:, 1], counts[:, 5])}

    def fitted_state_notes(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Where no answer begins."""
        if not self.unanswerable:
            return ()
        if "threshold" not in state:
            return ("no answer is given where it outscores every span: nothing to tune that on",)
        return (f"no answer is given from a margin of {state['threshold']:.4f} on (validation)",)

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """The whole context, its first sentence, its sentence with most of the question's words;
        and no answer, where that may be one."""
        contexts, questions = given.rows["context"], given.rows["question"]
        asked = list(zip(questions, contexts, strict=True))
        spans = {
            "whole context": [(0, len(context)) for context in contexts],
            "first sentence": [sentences_of(context)[0] for context in contexts],
            "most alike sentence": [most_alike(*each) for each in asked],
        }
        simple = {
            name: [spoken(c, Span(*s, 0.0)) for c, s in zip(contexts, places, strict=True)]
            for name, places in spans.items()
        }
        none = {"no answer": [dict(NO_ANSWER)] * len(contexts)}
        return {**none, **simple} if self.unanswerable else simple

    def counts(self, answers: Sequence[Mapping[str, Any]], given: EvalSplit) -> "Floats":
        """Exact match, F1 and one, of all rows and then of those with an answer: (rows, 6)."""
        import numpy as np

        found = np.zeros((len(answers), 6))
        for row, (said, cell) in enumerate(zip(answers, given.rows["answers"], strict=True)):
            right = [answer.text for answer in answers_in(cell)]
            match = (*best_match(said["text"], right, self.unanswerable), 1.0)
            found[row] = (*match, *(match if right else (0.0, 0.0, 0.0)))
        return found

    def totals(self, sums: "Floats", names: Sequence[str]) -> "dict[str, Floats]":
        """Means over rows; where questions may have no answer, also over either kind."""
        exact, f1, rows, exact_there, f1_there, there = sums.T
        found = {"f1": f1 / rows, "exact_match": exact / rows}
        if self.unanswerable:
            found["f1[answerable]"] = ratio(f1_there, there)
            found["exact_match[answerable]"] = ratio(exact_there, there)
            found["f1[unanswerable]"] = ratio(f1 - f1_there, rows - there)
        return found

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """Where the answer stands and how sure it is, without its text."""
        for line in super().prediction_lines(predictions, given):
            yield {k: v for k, v in line.items() if k not in ("text", "candidates")}


def spoken(context: str, span: Span) -> dict[str, Any]:
    """A span as `predict` tells it."""
    return {"text": context[span.start : span.end], **span._asdict()}


def ratio(part: "Floats", whole: "Floats") -> "Floats":
    """Part of whole; undefined where there is none."""
    import numpy as np

    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def labels_of(length: int, span: tuple[int, int] | None) -> list[int]:
    """A label a token: the first one's is one number of the window's `length` and the ends of the
    span to learn, all others are IGNORE_INDEX; so is the first one where the span is not known.

    So a batch's known labels are as many as its windows with a span, and each of them says which
    stretch of tokens it is about.
    """
    labels = [IGNORE_INDEX] * length
    if span is not None:
        labels[0] = length << 2 * BITS | span[0] << BITS | span[1]
    return labels


def labeled(labels: "torch.Tensor") -> list[tuple[int, int, tuple[int, int]]]:
    """Of each window with a span: its first token, its length, and the span within it."""
    known = (labels != IGNORE_INDEX).nonzero().flatten()
    low = (1 << BITS) - 1
    return [
        (first, label >> 2 * BITS, (label >> BITS & low, label & low))
        for first, label in zip(known.tolist(), labels[known].tolist(), strict=True)
    ]
