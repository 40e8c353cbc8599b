"""Pieces: texts as a tokenizer cuts them, with their places in the text and no special tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.errors import DataError, Fault, RecipeError
from peftkit.text.special_tokens import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First character and the one behind the last."""


class Pieces(NamedTuple):
    """One text in pieces."""

    ids: list[int]
    spans: list[Span]


class Frame(NamedTuple):
    """The special tokens around a single text."""

    before: list[int]
    after: list[int]
    segmented: bool
    """Whether the model reads `token_type_ids`."""

    def room(self, max_length: int, least: int = 1) -> int:
        """Pieces that fit between the special tokens; raises `DataError` for less than `least`."""
        special = len(self.before) + len(self.after)
        if max_length - special < least:
            what = f"is {max_length}, too few - use {least + special} or more"
            raise DataError("the texts do not fit:", [Fault("data.max_length", what)])
        return max_length - special

    def around(self, ids: Sequence[int]) -> dict[str, list[int]]:
        """An example's columns of the pieces with their special tokens."""
        whole = [*self.before, *ids, *self.after]
        types = {"token_type_ids": [0] * len(whole)} if self.segmented else {}
        return {"input_ids": whole, **types}


def pieces_of(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[Pieces]:
    """The pieces of each text.

    Raises `RecipeError` where the tokenizer does not know where in a text its pieces stand.
    """
    if not tokenizer.is_fast:
        what = f"its tokenizer ({type(tokenizer).__name__}) cannot say where in a text its pieces "
        raise RecipeError(
            "the model does not suit the task:",
            [Fault("model", f"{what}stand - use a model with a tokenizer.json")],
        )
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = encode_text(tokenizer, texts, **how)
    both = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [Pieces(list(ids), [tuple(span) for span in spans]) for ids, spans in both]


def frame_of(tokenizer: "PreTrainedTokenizerBase") -> Frame:
    """What the tokenizer puts before and behind a single text."""
    inner: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(inner) + 1)
    start = next(i for i in starts if whole[i : i + len(inner)] == inner)
    segmented = "token_type_ids" in tokenizer.model_input_names
    return Frame(whole[:start], whole[start + len(inner) :], segmented)


def unknown_id(tokenizer: Any) -> int:
    """The token that stands for what a tokenizer has no piece for."""
    known = (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id)
    return next(int(token) for token in known if token is not None)


def pieces_of_words(
    pieces: Pieces, text: str, words: Sequence[Span], unknown: int
) -> tuple[list[int], list[int]]:
    """The pieces' ids, word by word, and the place of each word's first one.

    A word that the tokenizer drops (control characters) is there as the token `unknown`. A piece
    that is only a blank goes with what is behind it.
    """
    starts = [start for start, _ in words]
    own: list[list[int]] = [[] for _ in words]
    for token, (start, end) in zip(pieces.ids, pieces.spans, strict=True):
        inner = text[start:end].lstrip()
        own[max(0, bisect_right(starts, end - len(inner)) - 1)].append(token)
    filled = [tokens or [unknown] for tokens in own]
    firsts = [0, *accumulate(map(len, filled))][: len(words)]
    return [token for tokens in filled for token in tokens], firsts


def windows(length: int, room: int, stride: int) -> Iterator[Span]:
    """Windows of at most `room` pieces over `length` of them, neighbors of which share `stride`;
    the last two may share more, so that each is full."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - stride
    yield max(0, length - room), length


def window_of(place: int, among: Sequence[Span], length: int) -> int:
    """Which of the windows shows most of what is around a piece: the first of several."""

    def context(window: Span) -> int:
        start, end = window
        if not start <= place < end:
            return -1
        left = length if start == 0 else place - start
        right = length if end == length else end - 1 - place
        return min(left, right)

    return max(range(len(among)), key=lambda index: context(among[index]))


def with_markers(
    pieces: Pieces, spans: Sequence[Span], markers: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The pieces with an opening and a closing marker around each span, and where those stand.

    `markers` are the first span's two, the second's, ... A span takes in whole pieces.
    """
    inserted: list[tuple[int, int, int]] = []
    for number, (start, end) in enumerate(spans):
        touched = [i for i, (a, b) in enumerate(pieces.spans) if a < end and b > start]
        before = bisect_left(pieces.spans, (start, start))
        first, behind = (touched[0], touched[-1] + 1) if touched else (before, before)
        inserted += [(first, 1, 2 * number), (behind, 0 if touched else 2, 2 * number + 1)]
    ids, places = list(pieces.ids), [0] * len(markers)
    # from behind, so that what stands before keeps its place; where two meet, one closes first
    for place, _, which in sorted(inserted, reverse=True):
        ids.insert(place, markers[which])
        places = [p + 1 if p >= place else p for p in places]
        places[which] = place
    return ids, places


def nearest_to(places: Sequence[int], length: int, room: int) -> list[int]:
    """At most `room` of so many pieces, in their order: those between the first and the last of
    `places` before those around them, and what is nearer to one of them before what is farther."""
    first, last = min(places), max(places)

    def rank(index: int) -> tuple[bool, int]:
        return not first <= index <= last, min(abs(index - place) for place in places)

    return sorted(sorted(range(length), key=rank)[:room])
