"""Tasks: what a model is asked. One task a file; declaring the class makes `task=<kind>` work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.registry import Component

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from peftkit.data import Splits
    from peftkit.metrics import Score


@dataclass(frozen=True)
class Predictions:
    """What a model said of examples, in the order of the examples.

    `label_ids` (n,) are the right answers, -1 where unknown; `probabilities` is (n, classes).
    """

    label_ids: "np.ndarray"
    probabilities: "np.ndarray"
    loss: float | None
    """Mean loss over the examples whose answer is known."""


@dataclass(frozen=True)
class Scored:
    """Scores by name, the headline first; beside them the baseline's and what else is known."""

    scores: "dict[str, Score]"
    baseline: "dict[str, Score]"
    details: dict[str, Any]


class Task(Component):
    """What is asked of the model: which columns it needs, how they are encoded, what is scored."""

    family = "task"
    package = "peftkit.tasks"

    roles: ClassVar[Mapping[str, bool]]
    """The columns the task reads, and whether each must be there."""
    peft_type: ClassVar[str]
    """PEFT's name for tasks of this kind."""
    pipeline_tag: ClassVar[str]
    """The hub's name for tasks of this kind."""
    trains_head: ClassVar[bool]
    """Whether the task puts a new head on the model, which every strategy then trains."""

    @property
    def headline(self) -> str:
        """The score that runs are compared and chosen by; more is better."""
        raise NotImplementedError

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """The names of the labels in id order.

        Raises `DataError` where the labels cannot be learned or scored, with all faults at once.
        """
        raise NotImplementedError

    def auto_class(self) -> Any:
        """The `AutoModelFor...` class that loads a model with this task's head."""
        raise NotImplementedError

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """A batch of rows as columns `input_ids`, `labels`, `truncated` and what else is read."""
        raise NotImplementedError

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of the examples' losses, a scalar in fp32."""
        raise NotImplementedError

    def probabilities(self, logits: "torch.Tensor") -> "torch.Tensor":
        """What the logits say of each example, fp32."""
        raise NotImplementedError

    def score(
        self, predictions: Predictions, names: Sequence[str], majority: int, resamples: int = 1000
    ) -> Scored:
        """Scores of `predictions`; `majority` is the most frequent label of the train split.

        `resamples` draws the intervals; 0 leaves them out.
        """
        raise NotImplementedError
