"""Centroids: each row's class by the mean embedding of a class that is nearest to its own."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from peftkit.evaluation import predict
from peftkit.language import columns_in
from peftkit.prompting import in_turn
from peftkit.recipe import Recipe
from peftkit.sources import Source
from peftkit.tasks import Given, Reading, Task
from peftkit.untrained.bases import base_for
from peftkit.world import World

TRAIN_ROWS = 1000
"""Rows of train, at most, whose embeddings the centroids are the means of."""


class Embeddings(Task):
    """What a base makes of a text: the mean of its last hidden states, of length 1."""

    reading: ClassVar[Reading] = "tokens"
    trains_head: ClassVar[bool] = False
    peft_type: ClassVar[str] = "FEATURE_EXTRACTION"
    pipeline_tag: ClassVar[str] = "feature-extraction"

    def configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing: there is no head."""
        return {}

    def auto_class(self, config: Any = None) -> Any:
        """The models without a head."""
        from transformers import AutoModel

        return AutoModel

    def logits(self, output: Any) -> Tensor:
        """The last hidden state of every token: (tokens, hidden)."""
        states: Tensor = output.last_hidden_state
        return states

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """None: nothing is right or wrong here."""
        return torch.zeros(())

    def known(self, labels: Tensor) -> int:
        """Nothing."""
        return 0

    def outputs(self, logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
        """Each text's mean over its tokens, special ones among them, of length 1."""
        parts = logits.float().split(list(sizes))
        return [normalize(part.mean(dim=0), dim=0).cpu().numpy() for part in parts]


def by_nearest_centroid(
    recipe: Recipe, model: Source, tokenizer: Any, given: Given, world: World
) -> list[np.ndarray]:
    """The probability of each class for each of the rows: a softmax over the negative squared
    distances to the classes' mean embeddings, of train rows that are drawn with the classes taking
    turns (Snell et al. 2017, eq. 2, on embeddings that nothing was trained for)."""
    chosen = given.train.select(in_turn(given.train["label"][:], TRAIN_ROWS, seed=0))
    columns = {name: chosen[name][:] for name in recipe.task.roles if name in chosen.column_names}
    known = recipe.task.encode(columns, tokenizer, given.names, recipe.data.max_length)
    task = Embeddings(kind="embeddings")
    base = base_for(task, recipe, model, tokenizer, given.names, world)
    shown, asked = (
        np.stack(predict(base, task, unlabelled(examples), world).outputs).astype(np.float64)
        for examples in (known, given.examples)
    )
    return list(probabilities(shown, np.asarray(known["labels"]), asked, len(given.names)))


def probabilities(
    shown: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int
) -> np.ndarray:
    """How near each embedding that is `asked` about is to the means of those `shown` by class, as
    probabilities; 0 of a class that none is shown of."""
    from sklearn.metrics.pairwise import euclidean_distances

    there = np.unique(labels)
    # not scikit-learn's `NearestCentroid` (1.9): it wants variance in all rows, which one row a
    # class lacks, and its probabilities are of other distances than its predictions
    centroids = np.stack([shown[labels == label].mean(axis=0) for label in there])
    distances = euclidean_distances(asked, centroids, squared=True)
    likely = np.exp(distances.min(axis=1, keepdims=True) - distances)
    found = np.zeros((len(asked), classes))
    found[:, there] = likely / likely.sum(axis=1, keepdims=True)
    return found


def unlabelled(examples: Any) -> Dataset:
    """The examples' tokens, all of which are read."""
    there = [key for key in ("input_ids", "token_type_ids") if key in columns_in(examples)]
    columns = {key: list(examples[key]) for key in there}
    ids = columns["input_ids"]
    return Dataset.from_dict({**columns, "labels": ids, "length": [len(each) for each in ids]})
