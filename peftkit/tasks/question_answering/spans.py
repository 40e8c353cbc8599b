"""Answers as spans of their context: read from a cell and located in the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Place = Literal["said", "repaired", "ambiguous", "unfound"]
"""How an answer was found: where it is said to be, at the only place where it stands; or not."""

UNKNOWN = (
    "answers in a form that is not known - give texts, or lists 'text' and 'answer_start' (numbers)"
)


class Answer(NamedTuple):
    """A right answer as a file gives it."""

    text: str
    start: int | None
    """Where in the context it is said to begin, in characters."""


class Span(NamedTuple):
    """A stretch of a context, in characters, and what a model gives it."""

    start: int
    end: int
    score: float


def answers_in(cell: Any) -> list[Answer]:
    """The answers that a cell holds; none where there is no answer.

    It may hold lists `text` and `answer_start` (as the hub's SQuAD), objects with both (as SQuAD's
    own files), or one or several plain texts. Raises `ValueError` for all else.
    """
    if isinstance(cell, str):
        cell = [cell]
    if isinstance(cell, Mapping):
        cell = objects_of(cell)
    if cell is None:
        return []
    if not isinstance(cell, Sequence):
        raise ValueError(UNKNOWN)
    found = [{"text": one} if isinstance(one, str) else one for one in cell]
    return [answer for one in found if (answer := answer_of(one)).text]


def objects_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One object an answer, of an object with lists, or with one answer."""
    texts, starts = cell.get("text"), cell.get("answer_start")
    if isinstance(texts, str):
        return [dict(cell)]
    if not isinstance(texts, Sequence) or not isinstance(starts, Sequence | None):
        raise ValueError(UNKNOWN)
    if starts is not None and len(starts) != len(texts):
        raise ValueError("not as many 'answer_start' as 'text' - give each answer its own")
    places = starts if starts is not None else [None] * len(texts)
    return [{"text": t, "answer_start": s} for t, s in zip(texts, places, strict=True)]


def answer_of(said: Any) -> Answer:
    """One answer without white space around it; without text where it is blank."""
    text = said.get("text") if isinstance(said, Mapping) else None
    start = said.get("answer_start") if isinstance(said, Mapping) else None
    if not isinstance(text, str) or not (start is None or type(start) is int):
        raise ValueError(UNKNOWN)
    ahead = len(text) - len(text.lstrip())
    return Answer(text.strip(), None if start is None else start + ahead)


def located(context: str, answer: Answer) -> tuple[Place, int | None]:
    """How the answer was found in its context, and where it begins."""
    text, start = answer
    if start is not None and start >= 0 and context.startswith(text, start):
        return "said", start
    first = context.find(text)
    if first < 0:
        return "unfound", None
    if context.find(text, first + 1) >= 0:
        return "ambiguous", None
    return "said" if start is None else "repaired", first


def first_found(context: str, answers: Iterable[Answer]) -> tuple[int, int] | None:
    """Where the first answer that can be found begins and ends; None where none can."""
    for answer in answers:
        _, start = located(context, answer)
        if start is not None:
            return start, start + len(answer.text)
    return None
