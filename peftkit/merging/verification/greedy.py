"""Greedy texts: what a run and what came of it say to the same prompts, and where they end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftkit.registry import Settings


@dataclass(frozen=True)
class Answer:
    """What a language model says to one prompt when nothing is left to chance."""

    tokens: Sequence[int]
    """Up to and with the one that ends it."""
    text: str
    ended: bool
    """Whether a token ended it, and not its greatest length."""


class GreedyTexts(Settings):
    """How a run's greedy texts, with their ends, compare with those of what came of it."""

    prompts: int
    equal: int
    """TextAnswers that are the same to the letter, and end alike."""
    near_ties: int
    """TextAnswers that part where two tokens are as probable but for rounding."""
    ended: int
    """The run's answers that a token ends, and not their greatest length."""
    different: list[int]
    """The numbers of the prompts whose texts differ otherwise, from 1."""


def compare(
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    is_tie: Callable[[int, int, int], bool],
) -> GreedyTexts:
    """Compare answer by answer; `is_tie` says of a row, a step in it and a token whether the run
    would as soon have said that token there."""
    equal, ties, different = 0, 0, []
    for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if (one.text, one.ended) == (other.text, other.ended):
            equal += 1
            continue
        step = first_difference(one.tokens, other.tokens)
        if step is not None and is_tie(row, step, other.tokens[step]):
            ties += 1
        else:
            different.append(row + 1)
    ended = sum(answer.ended for answer in ours)
    return GreedyTexts(
        prompts=len(ours), equal=equal, near_ties=ties, ended=ended, different=different
    )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first step at which two answers say different tokens; None where one is only longer."""
    steps = enumerate(zip(one, other, strict=False))
    return next((step for step, (first, second) in steps if first != second), None)
