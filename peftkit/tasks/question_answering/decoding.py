"""Decoding: the best answer spans from the start and end logits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.tasks.question_answering.spans import Span

if TYPE_CHECKING:
    import numpy as np


class Considered(NamedTuple):
    """What may be said of one row."""

    spans: list[Span]
    """The best spans of its context, best first; none where no token of it was read."""
    nothing: float
    """The score of there being no answer: the lowest of its windows', as the official code has it
    (Devlin et al. 2019, section 4.3)."""

    @property
    def margin(self) -> float:
        """By how much no answer outscores the best span."""
        return self.nothing - self.spans[0].score if self.spans else float("inf")


def considered(
    windows: Mapping[str, Sequence[Any]],
    outputs: Sequence[np.ndarray],
    contexts: Sequence[str],
    longest: int,
    count: int,
) -> list[Considered]:
    """For each of the `contexts` the `count` best spans of at most `longest` tokens over all its
    `windows`, whose logits (tokens, 2) are the `outputs`."""
    spans: dict[int, dict[tuple[int, int], Span]] = defaultdict(dict)
    nothing: dict[int, float] = {}
    columns = (windows[key] for key in ("of", "context", "starts", "ends"))
    for row, context, starts, ends, logits in zip(*columns, outputs, strict=True):
        nothing[row] = min(nothing.get(row, math.inf), float(logits[0].sum()))
        own = logits[context : context + len(starts)]
        for score, first, last in best_spans(own, longest, count):
            place = trimmed(contexts[row], starts[first], ends[last])
            known = spans[row].get(place)
            if known is None or known.score < score:  # windows share tokens
                spans[row][place] = Span(*place, score)
    best = [
        sorted(spans[row].values(), key=lambda s: (-s.score, s)) for row in range(len(contexts))
    ]
    return [Considered(own[:count], nothing[row]) for row, own in enumerate(best)]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch without white space around it: some tokens hold the space before a word."""
    inner = text[start:end]
    ahead, behind = len(inner) - len(inner.lstrip()), len(inner) - len(inner.rstrip())
    return (start + ahead, end - behind) if inner.strip() else (start, start)


def best_spans(logits: np.ndarray, longest: int, count: int) -> list[tuple[float, int, int]]:
    """The `count` best of all spans of at most `longest` tokens: score, first and last token.

    `logits` are (tokens, 2), of starts and ends; a span's score is the sum of its two.
    """
    import numpy as np

    tokens = len(logits)
    if not tokens:
        return []
    width = min(longest, tokens)
    ends = np.concatenate([logits[:, 1], np.full(width - 1, -np.inf, dtype=logits.dtype)])
    scores = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, width)
    flat = scores.ravel()
    most = min(count, int(np.isfinite(flat).sum()))
    # ties: the span that comes first
    order = np.lexsort((np.arange(len(flat)), -flat)) if most > 1 else [int(flat.argmax())]
    places = [divmod(int(place), width) for place in order[:most]]
    return [(float(scores[first, more]), first, first + more) for first, more in places]
