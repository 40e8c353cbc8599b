"""Subword tokens of texts with their character spans, and windows over them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.errors import DataError, Fault, RecipeError
from peftkit.text.special_tokens import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First character, and the one after the last."""


class SubwordTokens(NamedTuple):
    """The ids and character spans of one text, without special tokens."""

    ids: list[int]
    spans: list[Span]


class SpecialTokenFrame(NamedTuple):
    """The special tokens around a single text."""

    before: list[int]
    after: list[int]
    segmented: bool
    """Whether the model reads `token_type_ids`."""

    def room(self, max_length: int, least: int = 1) -> int:
        """Return how many tokens fit between the special tokens; raises `DataError` if fewer than
        `least`."""
        special = len(self.before) + len(self.after)
        if max_length - special < least:
            what = f"is {max_length}, too few - use {least + special} or more"
            raise DataError("the texts do not fit:", [Fault("data.max_length", what)])
        return max_length - special

    def around(self, ids: Sequence[int]) -> dict[str, list[int]]:
        """Return the input columns for tokens surrounded by the special tokens."""
        whole = [*self.before, *ids, *self.after]
        types = {"token_type_ids": [0] * len(whole)} if self.segmented else {}
        return {"input_ids": whole, **types}


def tokenize_with_spans(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[SubwordTokens]:
    """Return the tokens of each text with their spans.

    Raises `RecipeError` for a slow tokenizer, which has no offsets.
    """
    if not tokenizer.is_fast:
        what = f"its tokenizer ({type(tokenizer).__name__}) has no character offsets"
        raise RecipeError(
            "the model does not suit the task:",
            [Fault("model", f"{what} - use a model with a tokenizer.json")],
        )
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = encode_text(tokenizer, texts, **how)
    both = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [SubwordTokens(list(ids), [tuple(span) for span in spans]) for ids, spans in both]


def find_frame(tokenizer: "PreTrainedTokenizerBase") -> SpecialTokenFrame:
    """Return the special tokens that the tokenizer puts around a single text."""
    inner: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(inner) + 1)
    start = next(i for i in starts if whole[i : i + len(inner)] == inner)
    segmented = "token_type_ids" in tokenizer.model_input_names
    return SpecialTokenFrame(whole[:start], whole[start + len(inner) :], segmented)


def find_unknown_id(tokenizer: Any) -> int:
    """Return the id for what is not in the vocabulary: unk, mask or pad token, whichever exists
    first."""
    known = (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id)
    return next(int(token) for token in known if token is not None)


def align_words(
    tokens: SubwordTokens, text: str, words: Sequence[Span], unknown: int
) -> tuple[list[int], list[int]]:
    """Return the token ids, word by word, and the position of each word's first token.

    A word that the tokenizer drops (control characters) becomes the token `unknown`. A token that
    is only white space belongs to the next word.
    """
    starts = [start for start, _ in words]
    own: list[list[int]] = [[] for _ in words]
    for token, (start, end) in zip(tokens.ids, tokens.spans, strict=True):
        inner = text[start:end].lstrip()
        own[max(0, bisect_right(starts, end - len(inner)) - 1)].append(token)
    filled = [tokens or [unknown] for tokens in own]
    firsts = [0, *accumulate(map(len, filled))][: len(words)]
    return [token for tokens in filled for token in tokens], firsts


def split_windows(length: int, room: int, stride: int) -> Iterator[Span]:
    """Yield windows of at most `room` tokens over `length` tokens; neighbors overlap by `stride`,
    the last two by more if needed, so that each window is full."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - stride
    yield max(0, length - room), length


def choose_window(place: int, among: Sequence[Span], length: int) -> int:
    """Return the index of the window with the most context around a token, the first of several."""

    def context(window: Span) -> int:
        start, end = window
        if not start <= place < end:
            return -1
        left = length if start == 0 else place - start
        right = length if end == length else end - 1 - place
        return min(left, right)

    return max(range(len(among)), key=lambda index: context(among[index]))


def insert_markers(
    tokens: SubwordTokens, spans: Sequence[Span], markers: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the token ids with an opening and a closing marker around each span, and the positions
    of the markers.

    `markers` are the two of the first span, those of the second, ... A span covers whole tokens.
    """
    inserted: list[tuple[int, int, int]] = []
    for number, (start, end) in enumerate(spans):
        touched = [i for i, (a, b) in enumerate(tokens.spans) if a < end and b > start]
        before = bisect_left(tokens.spans, (start, start))
        first, behind = (touched[0], touched[-1] + 1) if touched else (before, before)
        inserted += [(first, 1, 2 * number), (behind, 0 if touched else 2, 2 * number + 1)]
    ids, places = list(tokens.ids), [0] * len(markers)
    # from the end, so that earlier positions stay valid; where two meet, one closes first
    for place, _, which in sorted(inserted, reverse=True):
        ids.insert(place, markers[which])
        places = [p + 1 if p >= place else p for p in places]
        places[which] = place
    return ids, places


def keep_nearest(places: Sequence[int], length: int, room: int) -> list[int]:
    """Return at most `room` of `length` positions, in order: those between the first and the last
    of `places` before those around them, and nearer ones before farther ones."""
    first, last = min(places), max(places)

    def rank(index: int) -> tuple[bool, int]:
        return not first <= index <= last, min(abs(index - place) for place in places)

    return sorted(sorted(range(length), key=rank)[:room])
