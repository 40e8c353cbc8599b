"""Overlapping windows of a question and its context, and the answer span in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from peftkit.errors import Fault, RecipeError
from peftkit.tasks.question_answering.spans import Answer, first_found
from peftkit.text.special_tokens import encode_text

NOTHING = (0, 0)
"""Where a window without the answer points to: its first token."""


class Room(NamedTuple):
    """How many tokens there are for what."""

    window: int
    """For question, context and what the tokenizer puts around them."""
    question: int
    """For the question at most."""
    stride: int
    """Of the context in two neighboring windows."""


class Window(NamedTuple):
    """A question and a stretch of its context."""

    of: int
    """Which of the questions."""
    columns: dict[str, list[int]]
    """What a model reads, by its name."""
    context: int
    """The first token of the context."""
    starts: list[int]
    """Where each token of the context begins, in characters."""
    ends: list[int]
    """Where it ends."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.columns["input_ids"])


def room_of(tokenizer: Any, window: int, question: int | str, stride: int | str) -> Room:
    """The shares of a window of so many tokens.

    Raises `RecipeError` where a tokenizer cannot say where tokens stand, or windows cannot go on.
    """
    share = Room(
        window,
        max(1, window // 4) if question == "auto" else int(question),
        window // 3 if stride == "auto" else int(stride),
    )
    faults = []
    if not tokenizer.is_fast:
        what = (
            "its tokenizer gives no offsets of tokens (it is no fast tokenizer) - use another model"
        )
        faults.append(Fault("model", what))
    around = tokenizer.num_special_tokens_to_add(pair=True)
    left = window - around - share.question
    if left <= share.stride:
        what = (
            f"is {window}: {share.question} tokens of a question and {around} around it leave "
            f"{max(0, left)} for the context, of which {share.stride} would be the last window's - "
            "raise it, or lower task.question_length or task.stride"
        )
        faults.append(Fault("data.max_length", what))
    if faults:
        raise RecipeError("contexts cannot be read in windows:", faults)
    return share


def windows_of(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Any, room: Room
) -> list[Window]:
    """All windows of all questions, in their order; only the context is parted."""
    told = encode_text(
        tokenizer,
        questions,
        contexts,
        truncation="only_second",
        max_length=room.window,
        stride=room.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    read = [key for key in ("input_ids", "token_type_ids") if key in told]
    found = []
    for number, of in enumerate(told["overflow_to_sample_mapping"]):
        parts = told.sequence_ids(number)
        first = parts.index(1) if 1 in parts else len(parts)
        places = told["offset_mapping"][number][first : first + parts.count(1)]
        columns = {key: told[key][number] for key in read}
        starts, ends = [start for start, _ in places], [end for _, end in places]
        found.append(Window(of, columns, first, starts, ends))
    return found


def cut_question(text: str, tokenizer: Any, most: int) -> str:
    """The question, or as much of its beginning as gives at most so many tokens."""
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    while True:
        told = encode_text(tokenizer, [text], **how)
        if len(told["input_ids"][0]) <= most:
            return text
        # a character of several tokens would never fit: then it goes, too
        text = text[: min(told["offset_mapping"][0][most - 1][1], len(text) - 1)]


def spans_to_learn(
    windows: Sequence[Window],
    contexts: Sequence[str],
    answers: Sequence[list[Answer] | None],
    unanswerable: bool,
) -> list[tuple[int, int] | None]:
    """The first and last token of each window's answer, `NOTHING` where it does not hold it; None
    where it is not known: no answers are given or can be found, or no window holds them whole."""
    found: list[tuple[int, int] | None] = []
    for of, group in groupby(windows, key=lambda window: window.of):
        own, given = list(group), answers[of]
        if given is None or not (given or unanswerable):
            found += [None] * len(own)
        elif not given:
            found += [NOTHING] * len(own)
        else:
            found += spans_in(own, first_found(contexts[of], given))
    return found


def spans_in(
    windows: Sequence[Window], span: tuple[int, int] | None
) -> list[tuple[int, int] | None]:
    """In the windows of one context, the first and last token of the `span` of characters."""
    if span is None:
        return [None] * len(windows)
    begin, end = span
    inside = [
        [i for i, (s, e) in enumerate(zip(w.starts, w.ends, strict=True)) if s < end and e > begin]
        for w in windows
    ]
    first = min((w.starts[i[0]] for w, i in zip(windows, inside, strict=True) if i), default=-1)
    last = max((w.ends[i[-1]] for w, i in zip(windows, inside, strict=True) if i), default=-1)
    # the tokens around an answer can hold more than it, and some of its characters no token at all
    whole = [
        bool(i) and w.starts[i[0]] == first and w.ends[i[-1]] == last
        for w, i in zip(windows, inside, strict=True)
    ]
    if not any(whole):
        return [None] * len(windows)
    return [
        (w.context + i[0], w.context + i[-1]) if fits else NOTHING
        for w, i, fits in zip(windows, inside, whole, strict=True)
    ]
