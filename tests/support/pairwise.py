"""Pairs of values: few combinations, in which any two values that go together meet once at least.

allpairspy 2.5.1 was tried: with rules between the axes it left out one possible pair in five.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Rule = Callable[..., bool]
"""Whether the values of the axes that its arguments name go together."""
Combination = Mapping[str, Any]
Pair = frozenset[tuple[str, Any]]
TRIES = 5


def broken(combination: Combination, rules: Mapping[str, Rule]) -> list[str]:
    """The names of the rules that the values, of all axes or some, break."""
    return [
        name
        for name, rule in rules.items()
        if (asks := inspect.signature(rule).parameters).keys() <= combination.keys()
        and not rule(**{axis: combination[axis] for axis in asks})
    ]


def pairs_of(combination: Combination) -> set[Pair]:
    """Any two of the values."""
    return {frozenset(pair) for pair in combinations(combination.items(), 2)}


class Axes:
    """Axes, the values on each, and the rules between them."""

    def __init__(
        self, values: Mapping[str, Sequence[Any]], rules: Mapping[str, Rule], seed: int = 0
    ) -> None:
        self.values, self.chance = values, random.Random(seed)
        asked = [(inspect.signature(rule).parameters.keys(), rule) for rule in rules.values()]
        self.rules = {axis: [each for each in asked if axis in each[0]] for axis in values}
        self.missing: set[Pair] = set()

    def covering(self) -> Iterator[dict[str, Any]]:
        """Combinations, until each pair that can be has been; the same ones at each call."""
        every = [
            {one: first, other: second}
            for one, other in combinations(self.values, 2)
            for first in self.values[one]
            for second in self.values[other]
        ]
        possible = [known for known in every if self.completed(known, list(known))]
        self.missing = set().union(*map(pairs_of, possible))
        for known in possible:
            if pairs_of(known) & self.missing:
                found = [self.completed(known, list(known)) or {} for _ in range(TRIES)]
                best = max(found, key=lambda each: len(pairs_of(each) & self.missing))
                self.missing -= pairs_of(best)
                yield {axis: best[axis] for axis in self.values}

    def completed(self, known: dict[str, Any], new: Sequence[str]) -> dict[str, Any] | None:
        """The combination with values for all axes, those first that bring missing pairs; None
        where none go with those that are `known`, of which only the `new` are still to be held to
        the rules."""
        if not self.goes_together(known, new):
            return None
        left = [axis for axis in self.values if axis not in known]
        if not left:
            return known
        axis = left[0]
        values = self.chance.sample(self.values[axis], len(self.values[axis]))
        for value in sorted(values, key=lambda value: -self.gain(known, axis, value)):
            found = self.completed({**known, axis: value}, [axis])
            if found is not None:
                return found
        return None

    def gain(self, known: Combination, axis: str, value: Any) -> int:
        """How many missing pairs the value would bring."""
        if not self.missing:
            return 0
        return sum(frozenset([(axis, value), other]) in self.missing for other in known.items())

    def goes_together(self, known: Combination, new: Sequence[str]) -> bool:
        """Whether no rule about a `new` axis is broken, as far as values are known."""
        return all(
            rule(**{axis: known[axis] for axis in asks})
            for each in new
            for asks, rule in self.rules[each]
            if asks <= known.keys()
        )


def each_value(cases: Sequence[Any], values_of: Callable[[Any], Combination]) -> list[Any]:
    """A few of the cases, in which each value that any case has is there once at least."""
    missing = {pair for case in cases for pair in values_of(case).items()}
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(missing & values_of(case).items()))
        missing -= values_of(best).items()
        chosen.append(best)
    return chosen
