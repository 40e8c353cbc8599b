"""Augmentation: copies of training rows with random word dropout, swaps and replacements."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from peftkit.registry import Settings

if TYPE_CHECKING:
    import datasets


class Augment(Settings):
    """How copies of training rows differ from them, following EDA (Wei and Zou 2019), with
    replacements sampled from the words of the train split (Xie et al. 2017) instead of synonyms."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of removing a word; at least one remains."""
    swap: float = Field(default=0.0, ge=0, lt=1)
    """Probability of swapping a word with the next one."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Probability of replacing a word by one sampled from the words of the train split."""
    copies: PositiveInt = 1
    """Copies per row, in addition to the row itself."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.dropout + self.swap + self.noise:
            raise ValueError("changes no word - set dropout, swap or noise, or leave it out")
        return self


def augment_rows(
    rows: datasets.Dataset, how: Augment, roles: Sequence[str], seed: int
) -> datasets.Dataset:
    """Return the rows followed by their copies, with changed texts in `roles`. A copy depends on
    the seed, its row and the words of the split; its other columns are unchanged."""
    from datasets import Dataset, concatenate_datasets

    words = count_words(rows, roles)
    made: dict[str, list[Any]] = {name: [] for name in rows.column_names}
    for copy in range(1, how.copies + 1):
        for row in rows:
            name = f"{row['row']}~{copy}"
            chance = random.Random(f"{seed} {name}")
            texts = {r: " ".join(change_words(row[r].split(), how, words, chance)) for r in roles}
            for column, value in {**row, **texts, "row": name}.items():
                made[column].append(value)
    return concatenate_datasets([rows, Dataset.from_dict(made, features=rows.features)])


class WordSampler:
    """The words of the train split, sampled in proportion to their counts."""

    def __init__(self, counts: Counter[str]) -> None:
        self._words = sorted(counts)
        self._sums = list(accumulate(counts[word] for word in self._words))

    def sample(self, chance: random.Random) -> str:
        """Return one word."""
        return chance.choices(self._words, cum_weights=self._sums)[0]


def count_words(rows: datasets.Dataset, roles: Sequence[str]) -> WordSampler:
    """Return the words of all texts in `roles`."""
    counts: Counter[str] = Counter()
    for role in roles:
        for text in rows[role]:
            counts.update(text.split())
    return WordSampler(counts)


def change_words(
    words: list[str], how: Augment, known: WordSampler, chance: random.Random
) -> list[str]:
    """Return the words of one text after dropout, swaps and replacements, in this order."""
    kept = [word for word in words if chance.random() >= how.dropout] or [chance.choice(words)]
    for place in range(len(kept) - 1):
        if chance.random() < how.swap:
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return [known.sample(chance) if chance.random() < how.noise else word for word in kept]
