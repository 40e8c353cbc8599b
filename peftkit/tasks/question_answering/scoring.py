"""Exact match and F1 of answers as in the official SQuAD scripts, and answers without training.

After the scripts `evaluate-v1.1.py` and `evaluate-v2.0.py` of Rajpurkar et al. 2016 and 2018.
Beside right answers of other letters than a to z as MLQA (Lewis et al. 2020) has it: no script's
punctuation counts, and where no space divides words each character is one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.text.words import SENTENCE_ENDS, is_mostly_non_ascii, remove_punctuation, split_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """The text as answers are compared: in lower case, without punctuation and articles."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def normalized_beside(text: str, right: str) -> str:
    """The text as it is compared with a right answer, with a space between its words."""
    if not is_mostly_non_ascii(right):
        return normalized(text)
    return " ".join(split_words(normalized(remove_punctuation(text))))


def overlap_f1(said: Sequence[str], right: Sequence[str], nothing: bool) -> float:
    """F1 of the words that both answers have, counted as often as both have them.

    Two answers without words agree where `nothing` is an answer (v2.0), and have no word in common
    where it is none (v1.1).
    """
    if nothing and not (said and right):
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def best_match(said: str, right: Sequence[str], nothing: bool = False) -> tuple[float, float]:
    """Exact match and F1, each against the right answer that it is best for.

    Where `nothing` is an answer, it is the right one of a question that has no other.
    """
    pairs = [(normalized_beside(said, text), normalized_beside(text, text)) for text in right]
    if nothing:
        pairs = [pair for pair in pairs if pair[1]] or [(normalized(said), "")]
    exact = float(any(ours == theirs for ours, theirs in pairs))
    overlaps = (overlap_f1(ours.split(), theirs.split(), nothing) for ours, theirs in pairs)
    return exact, max(overlaps, default=0.0)


def best_threshold(margins: Floats, gains: Floats, answerable: Floats) -> float:
    """By how much 'no answer' must outscore a question's best span to be given, for the best F1.

    For each question: the margin between the two, the F1 of the span, and whether there is an
    answer. As `find_best_thresh` of the official script: the highest margin that is still answered.
    """
    import numpy as np

    order = np.argsort(margins, kind="stable")
    # answering a question more gains its F1, and loses the point of having said nothing
    change = np.where(answerable[order] > 0, gains[order], gains[order] - 1)
    reached = np.cumsum(change)
    # questions of one margin are answered all or none
    last = np.append(margins[order][1:] > margins[order][:-1], True)
    best = int(np.argmax(np.where(last, reached, -np.inf)))
    if reached[best] <= 0:
        return float(np.nextafter(margins.min(), -np.inf))
    return float(margins[order][best])


def sentences_of(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends: after a full stop, or ! or ?, and white space; or after
    their full-width forms."""
    begin, found = 0, []
    for gap in SENTENCE_ENDS.finditer(text):
        found.append((begin, gap.start()))
        begin = gap.end()
    return [*found, (begin, len(text))]


def most_alike(question: str, context: str) -> tuple[int, int]:
    """The sentence of the context with the most of the question's words; the first of several."""
    words = set(split_words(normalized(question)))
    sentences = sentences_of(context)
    shared = [
        len(words & set(split_words(normalized(context[start:end])))) for start, end in sentences
    ]
    return sentences[shared.index(max(shared))]
