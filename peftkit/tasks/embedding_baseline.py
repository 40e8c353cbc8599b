"""Baseline from the embeddings of the untrained base model: nearest centroid or similarity.

A task defines which hidden states are averaged for a row, and how they become predictions.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from peftkit.tasks.base import IGNORE_INDEX, Task
from peftkit.tasks.zero_shot import ZeroShotSettings, in_turn

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

TRAIN_ROWS = 1000
"""Rows of train, at most, that the base's embeddings are compared with."""


class EmbeddingBaseline(Task):
    """A task with a baseline from the embeddings of the untrained base model."""

    untrained_baseline: bool | None = None
    """Whether the untrained base model is scored on the test rows too: by its embeddings, and a
    causal model of classes also by prompts (`zero_shot`); null: yes."""

    untrained_baseline_name: ClassVar[str] = "nearest centroid"
    """What its answers are called."""
    has_classes: ClassVar[bool] = False
    added_settings: ClassVar[tuple[str, ...]] = ("untrained_baseline",)

    @field_validator("untrained_baseline")
    @classmethod
    def _yes_is_unset(cls, said: bool | None) -> bool | None:
        return None if said else said

    @property
    def has_untrained_baseline(self) -> bool:
        """Whether the base without training answers the test rows too."""
        return self.untrained_baseline is not False

    @property
    def embedding_baseline(self) -> "EmbeddingBaseline":
        """This task."""
        return self

    def zero_shot_settings(self) -> ZeroShotSettings | None:
        """How a causal language model is asked for a row's label; None where it is not."""
        return None

    def shown(self, train: Any) -> list[int]:
        """The rows of train that the others are compared with; classes take turns."""
        if self.has_classes:
            return in_turn(train["label"][:], TRAIN_ROWS, seed=0)
        count = min(TRAIN_ROWS, len(train))
        return sorted(random.Random(0).sample(range(len(train)), count))

    def encode_for_embeddings(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]] | None:
        """Token ids, in `labels` which embedding each token is averaged into (0, 1, ...; -100:
        none), and in `right` the right answers as encoded; None where embeddings say nothing."""
        encoded = self.encode(rows, tokenizer, names, max_length)
        columns: dict[str, list[Any]] = {
            key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded
        }
        parts = [[0] * len(ids) for ids in columns["input_ids"]]
        return {**columns, "labels": parts, "right": encoded["labels"]}

    def predict_from_embeddings(
        self,
        shown: "Sequence[np.ndarray]",
        right: Sequence[Any],
        asked: "Sequence[np.ndarray]",
        names: Sequence[str],
    ) -> "list[np.ndarray]":
        """Outputs for what is `asked` about from embeddings, (parts, hidden) each, and those of
        rows of train whose answers are known; by default the class of the nearest centroid."""
        import numpy as np

        known, unknown = (np.stack([each.ravel() for each in rows]) for rows in (shown, asked))
        return list(nearest_centroid(known, np.asarray(right), unknown, len(names)))


class WordEmbeddingBaseline(EmbeddingBaseline):
    """The baseline of tasks that label words: the embedding of each word's first subword token."""

    def encode_for_embeddings(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Each word that an example answers by its first subword token."""
        encoded = self.encode(rows, tokenizer, names, max_length)
        words = [[label for label in own if label != IGNORE_INDEX] for own in encoded["labels"]]
        parts = []
        for own in encoded["labels"]:
            number = itertools.count()
            parts.append([IGNORE_INDEX if label == IGNORE_INDEX else next(number) for label in own])
        return {"input_ids": encoded["input_ids"], "labels": parts, "right": words}

    def predict_from_embeddings(
        self,
        shown: "Sequence[np.ndarray]",
        right: Sequence[Any],
        asked: "Sequence[np.ndarray]",
        names: Sequence[str],
    ) -> "list[np.ndarray]":
        """The tag of the nearest centroid for each word."""
        import numpy as np

        # -1: the word's tag is not known
        known = np.asarray([label for words in right for label in words])
        found = nearest_centroid(
            np.concatenate(shown)[known >= 0], known[known >= 0], np.concatenate(asked), len(names)
        )
        return np.split(found, np.cumsum([len(words) for words in asked])[:-1])


class EntityEmbeddingBaseline(EmbeddingBaseline):
    """The baseline of tasks with two marked spans: the embeddings of both."""

    def encode_for_embeddings(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """The texts without markers, which the base does not know; the tokens of both parts."""
        encoded = self.encode(rows, tokenizer, names, max_length)
        markers: Any = tokenizer.convert_tokens_to_ids(list(self.markers()))
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "right": encoded["labels"]}
        for ids, read in zip(encoded["input_ids"], encoded["read"], strict=True):
            part, parts = IGNORE_INDEX, []
            for place, token in enumerate(ids):
                if token in markers:
                    part = read.index(place) if place in read else IGNORE_INDEX
                parts.append(part)
            kept = [place for place, token in enumerate(ids) if token not in markers]
            columns["input_ids"].append([ids[place] for place in kept])
            columns["labels"].append([parts[place] for place in kept])
        return columns


def nearest_centroid(
    shown: "np.ndarray", right: "np.ndarray", asked: "np.ndarray", classes: int
) -> "np.ndarray":
    """The probability of each class: a softmax over the negative squared distances to the classes'
    mean embeddings (Snell et al. 2017, eq. 2, on embeddings that nothing was trained for); 0 of a
    class that none is shown of. (shown, hidden), (shown,), (asked, hidden) to (asked, classes)."""
    import numpy as np
    from sklearn.metrics.pairwise import euclidean_distances

    there = np.unique(right)
    # not scikit-learn's `NearestCentroid` (1.9): it wants variance in all rows, which one row a
    # class lacks, and its probabilities are of other distances than its predictions
    #
    # distances in fp32, as the embeddings are: there is one for every word of a split
    centroids = np.stack([shown[right == n].mean(axis=0, dtype=np.float64) for n in there])
    distances = euclidean_distances(asked, centroids.astype(asked.dtype), squared=True)
    likely = np.exp(distances.min(axis=1, keepdims=True) - distances)
    found = np.zeros((len(asked), classes))
    found[:, there] = likely / likely.sum(axis=1, keepdims=True)
    return found
