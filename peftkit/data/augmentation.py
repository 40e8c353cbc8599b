"""Augmentation: copies of training rows whose words are dropped, swapped and replaced by chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from peftkit.registry import Settings

if TYPE_CHECKING:
    import datasets


class Augment(Settings):
    """How copies of training rows differ from them; after Wei and Zou 2019 (EDA), whose synonyms
    are here, as in Xie et al. 2017, draws from the words of the train split itself."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each word to be left out; one always stays."""
    swap: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each word to change places with the next one."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each word to be replaced by one drawn from all words of the train split."""
    copies: PositiveInt = 1
    """How many copies of each row are learned from, beside the row itself."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.dropout + self.swap + self.noise:
            raise ValueError("changes no word - set dropout, swap or noise, or leave it out")
        return self


def augment_rows(
    rows: datasets.Dataset, how: Augment, roles: Sequence[str], seed: int
) -> datasets.Dataset:
    """The rows, then their copies with changed texts in `roles`: a copy is a function of the seed,
    of its row and of the words there are, and keeps all else that its row has."""
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
    """The words of the train split, to be drawn as often as they are there."""

    def __init__(self, counts: Counter[str]) -> None:
        self._words = sorted(counts)
        self._sums = list(running(counts[word] for word in self._words))

    def draw(self, chance: random.Random) -> str:
        """One word."""
        return chance.choices(self._words, cum_weights=self._sums)[0]


def running(counts: Iterator[int]) -> Iterator[int]:
    """The sums of the counts so far."""
    total = 0
    for count in counts:
        total += count
        yield total


def count_words(rows: datasets.Dataset, roles: Sequence[str]) -> WordSampler:
    """The words of all texts in `roles`."""
    counts: Counter[str] = Counter()
    for role in roles:
        for text in rows[role]:
            counts.update(text.split())
    return WordSampler(counts)


def change_words(
    words: list[str], how: Augment, known: WordSampler, chance: random.Random
) -> list[str]:
    """The words of one text after dropout, swaps and noise, in this order."""
    kept = [word for word in words if chance.random() >= how.dropout] or [chance.choice(words)]
    for place in range(len(kept) - 1):
        if chance.random() < how.swap:
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return [known.draw(chance) if chance.random() < how.noise else word for word in kept]
