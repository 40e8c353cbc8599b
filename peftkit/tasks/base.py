"""The base class of tasks; declaring a subclass with a `kind` makes `task=<kind>` work."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr, field_validator
from typing_extensions import Self

from peftkit.errors import nearest
from peftkit.metrics.evaluate_library import PREFIX
from peftkit.metrics.registry import METRICS
from peftkit.registry import Component

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits
    from peftkit.data.validation import Need
    from peftkit.metrics.counts import Totals
    from peftkit.metrics.registry import Score

    Floats = NDArray[np.float64]

Reading = Literal["example", "tokens", "labels"]
IGNORE_INDEX = -100
"""The label of a token that is left out of the loss, as in PyTorch."""


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model for encoded examples, in their order."""

    labels: Sequence[Any]
    """The encoded labels."""
    outputs: "Sequence[np.ndarray]"
    """What `Task.outputs` kept of each example."""
    loss: float | None
    """Mean loss over what has a label."""
    texts: Sequence[str | None] = ()
    """The text generated for each row of the split; None where none was generated."""
    samples: Sequence[Sequence[str] | None] = ()
    """With a grader: all texts generated for each row, the one above first."""
    passed: Sequence[int | None] = ()
    """The number of them that passed."""
    notes: Sequence[str] = ()
    """Notes for the record on how texts were generated and graded."""

    @property
    def label_ids(self) -> "np.ndarray":
        """Of examples with one label each: their ids, (n,), -1 where unknown."""
        import numpy as np

        return np.asarray(self.labels, dtype=np.int64)

    @property
    def probabilities(self) -> "np.ndarray":
        """Of examples with one output a class: (n, classes)."""
        import numpy as np

        return np.asarray(self.outputs) if len(self.outputs) else np.zeros((0, 0))


@dataclass(frozen=True)
class EvalSplit:
    """One split with its encoded examples, which predictions are scored against."""

    rows: Any
    """The split's rows (`datasets.Dataset`), a column a role."""
    examples: Any
    """The encoded rows: one example for each, or several with their row's index in `of`."""
    names: Sequence[str]
    """The labels' names in id order."""
    train: Any = None
    """The rows of the train split, for baselines; None where no baselines are computed."""
    resamples: int = 1000
    """Number of bootstrap samples for the intervals; 0: no intervals."""
    fitted_state: Mapping[str, Any] = field(default_factory=dict)
    """The task's fitted state, with which outputs become predictions."""


@dataclass(frozen=True, eq=False)
class FittedState(Mapping[str, Any]):
    """What a run fits beside the weights, by name: class weights, target scales, thresholds.

    An immutable mapping of JSON values, stored as `fitted_state` in run.json and in the artifact.
    """

    values_by_name: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


@dataclass(frozen=True)
class Scored:
    """Scores by name, the headline first, with those of baselines."""

    scores: "dict[str, Score]"
    baseline: "dict[str, Score]"
    """The scores of the simplest baseline: the majority class, the mean, ..."""
    details: dict[str, Any] = field(default_factory=dict)
    baselines: "dict[str, dict[str, Score]]" = field(default_factory=dict)
    """The scores of all baselines, by name."""
    notes: tuple[str, ...] = ()
    """Notes for the record on how the scores were computed."""


class Task(Component):
    """A task: the columns it reads, how they are encoded, the loss, and the scores."""

    family = "task"
    package = "peftkit.tasks"

    roles: ClassVar["Mapping[str, Need]"]
    """The columns the task reads, and whether each must be there."""
    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    """The roles that a prediction is made from, in the order in which they are passed."""
    peft_type: ClassVar[str]
    """PEFT's name for tasks of this kind."""
    pipeline_tag: ClassVar[str]
    """The hub's name for tasks of this kind."""
    problem_type: ClassVar[str | None] = None
    """The `problem_type` of transformers' sequence classifiers; None for other heads."""
    trains_head: ClassVar[bool]
    """Whether the task adds a new head to the model, which every strategy trains."""
    reading: ClassVar[Reading] = "example"
    """What the loss reads: an output for each example, for each of its tokens, or a language
    model's for the tokens that have a label."""
    pools_markers: ClassVar[bool] = False
    """Whether examples say in `read` which tokens a head that reads the first one reads instead, on
    average."""
    placeholder_names: ClassVar[tuple[str, ...]] = ("0", "1")
    """Labels that a plan assumes where the data are not available."""
    lines: ClassVar[tuple[str, ...]] = ("counts",)
    """Keys of `predictions.jsonl`, besides `row` and `hash`, that `row_values` reads."""
    fitted_on_validation: ClassVar[tuple[str, ...]] = ()
    """The keys of the fitted state that `fit_on_validation` returns."""
    _fitted_state: FittedState = PrivateAttr(default_factory=FittedState)
    has_classes: ClassVar[bool] = False
    """Whether `label` is one class for each row, by which rows can be sampled."""
    allows_word_augmentation: ClassVar[bool] = False
    """Whether labels stay valid when words are dropped, swapped or replaced (augmentation)."""
    supports_label_smoothing: ClassVar[bool] = True
    """Whether `training.label_smoothing` applies."""
    added_settings: ClassVar[tuple[str, ...]] = ()
    """Settings (`name`, or `name.name`) added after the task's first records: not part of a run's
    digest unless set."""
    has_label_names: ClassVar[bool] = False
    """Whether `predictions.jsonl` has the label names `label` and `predicted`, which the report
    then scores itself."""
    loss_unit: ClassVar[str] = "cross-entropy (nats)"
    """Name and unit of the loss, for the axes of charts."""
    is_conversation: ClassVar[bool] = False
    """Whether the rows are conversations, which `peftkit chat` continues."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """The scores that the setting `metric` may name, where the task has that setting."""
    scores_functions: ClassVar[bool] = False
    """Whether `metric` may also name any registered metric with a function, or evaluate:NAME."""

    @field_validator("metric", check_fields=False)
    @classmethod
    def _metric_is_known(cls, name: str) -> str:
        is_evaluate = cls.scores_functions and name.startswith(PREFIX) and name != PREFIX
        if cls.metrics and not is_evaluate and name not in (known := cls.metric_choices()):
            raise ValueError(f"no metric of this task is called {name!r} - {nearest(name, known)}")
        return name

    @classmethod
    def metric_choices(cls) -> list[str]:
        """The names that the setting `metric` may have, beside evaluate:NAME."""
        functions = [m.name for m in METRICS.values() if m.function and cls.scores_functions]
        return [*cls.metrics, *functions]

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """The schema of the settings, with the names that `metric` may have."""
        schema: dict[str, Any] = handler(core)
        setting = handler.resolve_ref_schema(schema).get("properties", {}).get("metric")
        if setting is not None and cls.metrics:
            names: dict[str, Any] = {"enum": cls.metric_choices()}
            setting["anyOf"] = [names, *[{"pattern": f"^{PREFIX}."}] * cls.scores_functions]
        return schema

    @property
    def headline(self) -> str:
        """The score by which runs are compared."""
        raise NotImplementedError

    @property
    def validation_metric(self) -> str:
        """The validation score used for early stopping and the best checkpoint."""
        return self.headline

    @property
    def has_untrained_baseline(self) -> bool:
        """Whether the untrained base model is scored on the test rows too, as a baseline."""
        return False

    @property
    def fitted_state(self) -> FittedState:
        """What the run has fitted so far: part of the artifact, not of the recipe."""
        return self._fitted_state

    def with_fitted_state(self, values: Mapping[str, Any]) -> Self:
        """The same task with another fitted state, which `encode` and `loss` use."""
        other = self.model_copy()
        other._fitted_state = FittedState(dict(values))
        return other

    def fit_on_train(self, splits: "Splits") -> dict[str, Any]:
        """Fitted state from the train split, before training, as JSON values: target scales, class
        weights."""
        return {}

    def fit_on_validation(self, predictions: Predictions, given: EvalSplit) -> dict[str, Any]:
        """Fitted state from the validation split, after training, as JSON values: thresholds.

        Called where `fitted_on_validation` names any keys and the split has rows.
        """
        return {}

    def fitted_state_notes(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Notes for the record on what was fitted."""
        return ()

    def encoding_notes(self, splits: "Splits", examples: Mapping[str, Any]) -> tuple[str, ...]:
        """Notes for the record on how the rows were encoded."""
        return ()

    def check_rows(self, splits: "Splits", tokenizer: Any) -> tuple[str, ...]:
        """Notes on how the rows suit the tokenizer.

        Raises `DataError` where they do not, with all faults at once.
        """
        return ()

    @property
    def text_generator(self) -> Any:
        """The task itself where its predictions are generated texts (`LanguageModeling`); else
        None."""
        return None

    @property
    def generation(self) -> Any:
        """How texts are generated at the end of a run (`Generation`); None where none are."""
        return None

    @property
    def embedding_baseline(self) -> Any:
        """The task itself where a baseline uses the base model's embeddings (`EmbeddingBaseline`);
        else None."""
        return None

    def texts_as_read(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The texts of the rows with all that the task adds to them, such as markers."""
        return list(rows["text"])

    def used_roles(self, there: Collection[str]) -> Collection[str]:
        """The roles in use, of those that the data have."""
        return there

    def peft_type_of(self, model: "PreTrainedModel") -> str:
        """PEFT's name for the task on this model."""
        return self.peft_type

    def markers(self) -> tuple[str, ...]:
        """Tokens that the task adds to the vocabulary."""
        return ()

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names of the labels in id order; none where labels have no names.

        Raises `DataError` where the labels cannot be learned or scored, with all faults at once.
        """
        raise NotImplementedError

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The `AutoModelFor...` class that loads a model of this `config` with the task's head."""
        raise NotImplementedError

    def configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """Settings of the model's configuration that the task determines."""
        ids = {name: index for index, name in enumerate(names)}
        known = {"id2label": dict(enumerate(names)), "label2id": ids}
        return {"num_labels": len(names), "problem_type": self.problem_type, **known}

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """A batch of rows as columns `input_ids`, `labels`, `truncated` and others that are read.

        Where a row becomes several examples, `of` is the index in the batch of each one's row."""
        raise NotImplementedError

    def logits(self, output: Any) -> "torch.Tensor":
        """The logits in the model's output: (examples or tokens that are read, classes)."""
        logits: torch.Tensor = output.logits
        return logits

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of the losses over everything that has a label, a scalar in fp32."""
        raise NotImplementedError

    def known(self, labels: "torch.Tensor") -> int:
        """How many losses `loss` sums."""
        return int((labels != IGNORE_INDEX).sum())

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """What is kept of each example, in fp32; `sizes` are the lines of `logits` of each."""
        raise NotImplementedError

    def score(self, predictions: Predictions, given: EvalSplit) -> Scored:
        """Scores of the predictions; by default those that `totals` computes from row `counts`."""
        from peftkit.metrics.counts import tally_scores

        def tallied(counts: "Floats") -> "dict[str, Score]":
            return tally_scores(
                counts, lambda sums: self.totals(sums, given.names), self.headline, given.resamples
            )

        scores = tallied(self.counts(self.answers(predictions, given), given))
        if given.train is None:
            return Scored(scores, {})
        simple = {
            n: tallied(self.counts(a, given)) for n, a in self.baseline_answers(given).items()
        }
        return Scored(scores, next(iter(simple.values()), {}), baselines=simple)

    def answers(self, predictions: Predictions, given: EvalSplit) -> list[dict[str, Any]]:
        """The prediction for each row, as `predict` returns it and `counts` scores it."""
        raise NotImplementedError

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """Predictions of baselines that need no training, by name; the simplest first."""
        return {}

    def counts(self, answers: Sequence[Mapping[str, Any]], given: EvalSplit) -> "Floats":
        """The contribution of each row to the sums that scores are computed from: (rows, kinds)."""
        raise NotImplementedError

    def totals(self, sums: "Floats", names: Sequence[str]) -> "dict[str, Floats]":
        """Every score by name from sums of counts, (many, kinds) to (many,); NaN: undefined."""
        raise NotImplementedError

    def parts(self, counts: "Floats", names: Sequence[str]) -> "list[tuple[Floats, Totals]]":
        """The counts in groups known for the same rows, each with the function of its scores."""
        return [(counts, lambda sums: self.totals(sums, names))]

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """The lines of `predictions.jsonl`; they never hold the source text."""
        answers = self.answers(predictions, given)
        for answer, counts in zip(answers, self.counts(answers, given), strict=True):
            yield {**answer, "counts": [round(float(count), 6) for count in counts]}

    def row_values(
        self, metric: str, columns: "Mapping[str, Any]", names: Sequence[str]
    ) -> "Floats | None":
        """The value of each row for `metric`, whose mean is the score; None where undefined.

        `columns` are the `lines` of `predictions.jsonl`: lists, numbers of one length as an array.
        """
        import numpy as np

        from peftkit.metrics.counts import pseudo_values

        counts = np.asarray(columns["counts"], dtype=float)
        return pseudo_values(counts, lambda sums: self.totals(sums, names), metric)
