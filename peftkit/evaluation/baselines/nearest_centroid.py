"""The nearest-centroid baseline: classes by distance between the base model's embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from peftkit.config.recipe import Recipe
from peftkit.evaluation.baselines.base_models import load_base
from peftkit.evaluation.prediction import predict
from peftkit.hub.source import Source
from peftkit.runtime.distributed import World
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Reading, Task
from peftkit.tasks.embedding_baseline import EmbeddingBaseline


class Embeddings(Task):
    """A task that returns the mean last hidden state of the labeled tokens."""

    reading: ClassVar[Reading] = "tokens"
    trains_head: ClassVar[bool] = False
    peft_type: ClassVar[str] = "FEATURE_EXTRACTION"
    pipeline_tag: ClassVar[str] = "feature-extraction"

    def configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """Return nothing: there is no head."""
        return {}

    def auto_class(self, config: Any = None) -> Any:
        """Return the class of models without a head."""
        from transformers import AutoModel

        return AutoModel

    def logits(self, output: Any) -> Tensor:
        """Return the last hidden state of every token: (tokens, hidden)."""
        states: Tensor = output.last_hidden_state
        return states

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Return zero: there are no targets."""
        return torch.zeros(())

    def known(self, labels: Tensor) -> int:
        """Return zero: there are no targets."""
        return 0

    def outputs(self, logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return each part's mean state, normalized: (parts, hidden) per example."""
        pairs = zip(logits.float().split(list(sizes)), labels.split(list(sizes)), strict=True)
        return [mean_states(states, parts) for states, parts in pairs]


def mean_states(states: Tensor, parts: Tensor) -> np.ndarray:
    """Return the normalized mean state of each part's tokens: (tokens, hidden) to (parts,
    hidden)."""
    known = parts != IGNORE_INDEX
    places, counts = parts[known], torch.bincount(parts[known])
    sums = states.new_zeros(len(counts), states.shape[1]).index_add_(0, places, states[known])
    found: np.ndarray = normalize(sums / counts[:, None], dim=1).cpu().numpy()
    return found


def predict_by_embedding(
    recipe: Recipe,
    task: EmbeddingBaseline,
    model: Source,
    tokenizer: Any,
    given: EvalSplit,
    world: World,
) -> list[np.ndarray] | None:
    """Return the task's outputs by nearest centroid; None if the task has no embeddings."""

    def embedded(rows: Any) -> dict[str, list[Any]] | None:
        columns = {name: rows[name][:] for name in rows.column_names}
        return task.encode_for_embeddings(columns, tokenizer, given.names, recipe.data.max_length)

    known, unknown = embedded(given.train.select(task.shown(given.train))), embedded(given.rows)
    if known is None or unknown is None:
        return None
    asking = Embeddings(kind="embeddings")
    base = load_base(asking, recipe, model, tokenizer, given.names, world)
    shown, queries = (
        predict(base, asking, to_examples(found), world).outputs for found in (known, unknown)
    )
    return task.predict_from_embeddings(shown, known["right"], queries, given.names)


def to_examples(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """Return tokens and their parts as a dataset of examples."""
    kept = {name: column for name, column in columns.items() if name != "right"}
    return Dataset.from_dict({**kept, "length": [len(ids) for ids in columns["input_ids"]]})
