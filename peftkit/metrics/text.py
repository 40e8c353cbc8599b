"""Metrics of generated texts: BLEU, chrF, ROUGE, exact match and pass@k.

The counts of a row are those of the reference libraries (sacrebleu, rouge-score). The scores are
computed for many sums of counts at once; their values are the same as the libraries'.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from peftkit.metrics.tokenizers import UnicodeWords, english, needed_by, rouge_tokenizer
from peftkit.text.words import split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CHRF_ORDER = 6
BLEU_ORDER = 4
ROUGE = ("rouge1", "rouge2", "rougeL")


class TextMetric(NamedTuple):
    """A metric of generated texts: the counts of a row, and the scores from sums of counts."""

    width: int
    """Numbers a row."""
    counts: Callable[[str, str], Sequence[float]]
    """Of a generated text and its reference."""
    totals: Callable[[Floats], dict[str, Floats]]
    """Sums (many, width) to scores by name, (many,) each."""
    signatures: Callable[[Sequence[str]], Mapping[str, str]] = lambda _: {}
    """Of the references: the signature of each score, in the form of sacrebleu."""
    notes: Callable[[Sequence[str]], Sequence[str]] = lambda _: ()
    """Of the references: notes on how texts are split."""


def means(names: Sequence[str]) -> Callable[[Floats], dict[str, Floats]]:
    """Totals of values whose mean over rows is the score; the last number counts the rows."""

    def totals(sums: Floats) -> dict[str, Floats]:
        with np.errstate(invalid="ignore"):
            return {name: sums[:, i] / sums[:, -1] for i, name in enumerate(names)}

    return totals


def exact_counts(extract: str | None) -> Callable[[str, str], Sequence[float]]:
    """Whether what was said is the reference, apart from white space.

    With `extract`, whether the final answers are the same that this pattern finds in both.
    """

    def counts(predicted: str, right: str) -> Sequence[float]:
        return float(is_same(predicted, right, extract)), 1.0

    return counts


def is_same(predicted: str, right: str, extract: str | None) -> bool:
    """Whether two texts, or their final answers, are the same; numbers as numbers."""
    if extract is None:
        return predicted.split() == right.split()
    ours, theirs = final_answer(predicted, extract), final_answer(right, extract)
    return ours is not None and ours == theirs


def final_answer(text: str, pattern: str) -> str | None:
    """What the last match of `pattern` holds (its first group); numbers without their commas."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found = matches[-1]
    answer = (found.group(1) if found.re.groups else found.group()) or ""
    bare = answer.strip().replace(",", "").lstrip("$").rstrip(".%")
    try:
        number = float(bare)
    except ValueError:
        return " ".join(answer.split())
    return repr(number) if math.isfinite(number) else bare


@cache
def rouge_scorer(tokenizer: str) -> Any:
    """rouge-score's scorer of texts split in one of two ways (`rouge_tokenizer`)."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(
        list(ROUGE), tokenizer=english() if tokenizer == "english" else UnicodeWords()
    )


def rouge_counts(tokenizer: str | None) -> Callable[[str, str], Sequence[float]]:
    """ROUGE-1, -2 and -L F-measures of a row, its texts split by the reference's script where no
    tokenizer is named."""

    def counts(predicted: str, right: str) -> Sequence[float]:
        found = rouge_scorer(tokenizer or rouge_tokenizer(right)).score(right, predicted)
        return [*(float(found[name].fmeasure) for name in ROUGE), 1.0]

    return counts


def rouge_tokenizers(tokenizer: str | None, references: Sequence[str]) -> list[str]:
    """All ways in which the references are split."""
    return [tokenizer] if tokenizer else sorted({*map(rouge_tokenizer, references)})


def rouge_signatures(tokenizer: str | None, references: Sequence[str]) -> dict[str, str]:
    """How ROUGE was computed, as sacrebleu would put it."""
    ways = "+".join(rouge_tokenizers(tokenizer, references))
    told = f"nrefs:1|case:lc|tok:{ways}|stem:porter|version:{version('rouge-score')}"
    return dict.fromkeys(ROUGE, told)


def rouge_notes(tokenizer: str | None, references: Sequence[str]) -> list[str]:
    """That references of another script than Latin are split otherwise."""
    beyond = sum(rouge_tokenizer(text) == "unicode" for text in references)
    if tokenizer or not beyond:
        return []
    return [
        f"ROUGE: {beyond} of {len(references)} references are of other letters than a to z and "
        "are split by Unicode's (task.score_tokenizer)"
    ]


@cache
def chrf() -> Any:
    """sacrebleu's chrF2."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=CHRF_ORDER)


@cache
def bleu(tokenizer: str) -> Any:
    """sacrebleu's BLEU with one of its tokenizers."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer)


def chrf_counts(predicted: str, right: str) -> Sequence[float]:
    """Numbers of character n-grams of each order: in the text, in the reference, in both."""
    (found,) = chrf()._extract_corpus_statistics([predicted], [[right]])
    return [float(number) for number in found]


def chrf_totals(sums: Floats) -> dict[str, Floats]:
    """chrF (Popović 2015), of 100, from sums (many, 3 orders)."""
    predicted, wanted, both = sums.reshape(len(sums), CHRF_ORDER, 3).transpose(2, 0, 1)
    there = (predicted > 0) & (wanted > 0)
    orders = np.maximum(there.sum(axis=1), 1)
    precision = (np.where(there, both, 0) / np.maximum(predicted, 1)).sum(axis=1) / orders
    recall = (np.where(there, both, 0) / np.maximum(wanted, 1)).sum(axis=1) / orders
    weight = 4.0  # beta is 2
    below = weight * precision + recall
    score = (1 + weight) * precision * recall / np.where(below > 0, below, 1)
    return {"chrf": 100 * score}


def bleu_counts(tokenizer: str) -> Callable[[str, str], Sequence[float]]:
    """Numbers of words in text and reference; of n-grams of each order in both and in the text."""

    def counts(predicted: str, right: str) -> Sequence[float]:
        (found,) = bleu(tokenizer)._extract_corpus_statistics([predicted], [[right]])
        return [float(number) for number in found]

    return counts


def bleu_totals(sums: Floats) -> dict[str, Floats]:
    """BLEU (Papineni et al. 2002) with sacrebleu's exponential smoothing, of 100."""
    predicted, wanted = sums[:, 0], sums[:, 1]
    right, total = sums[:, 2 : 2 + BLEU_ORDER], sums[:, 2 + BLEU_ORDER :]
    # an order without a match counts as half of one, the next as a quarter, ...
    smooth = 2.0 ** -np.cumsum((right == 0) & (total > 0), axis=1)
    precision = np.where(right > 0, right, smooth) / np.maximum(total, 1)
    known = np.asarray((total > 0).all(axis=1) & (right > 0).any(axis=1))
    mean = np.exp(np.log(np.where(known[:, None], precision, 1)).mean(axis=1))
    with np.errstate(over="ignore"):
        short = np.exp(np.minimum(0, 1 - wanted / np.maximum(predicted, 1)))
    return {"bleu": np.where(known, 100 * mean * short, 0.0)}


PASSES_AT = (1, 10, 100)
"""The k of pass@k, as Chen et al. 2021 have it, of which there are as many samples."""


def pass_at(k: int, samples: int, passed: int) -> float:
    """The chance that of `k` of the samples, drawn at random, one passes: 1 - C(n-c, k) / C(n, k),
    the unbiased estimate of pass@k (Chen et al. 2021, equation 1)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def passes_at(samples: int) -> list[int]:
    """The values of k for a number of samples: 1, 10, 100, and all of them."""
    return sorted({k for k in (*PASSES_AT, samples) if k <= samples})


def pass_names(samples: int) -> list[str]:
    """The names of the scores for a number of samples for each row."""
    return [f"pass@{k}" for k in passes_at(samples)]


def pass_counts(passed: int | None, samples: int) -> list[float]:
    """The counts of a row for pass@k, and 1; NaN where it was not graded."""
    if passed is None:
        return [math.nan] * (len(passes_at(samples)) + 1)
    return [*(pass_at(k, samples, passed) for k in passes_at(samples)), 1.0]


EXACT = TextMetric(2, exact_counts(None), means(["exact_match"]))
CHRF = TextMetric(
    3 * CHRF_ORDER, chrf_counts, chrf_totals, lambda _: {"chrf": sacrebleu_signature(chrf())}
)


def rouges(tokenizer: str | None = None) -> TextMetric:
    """ROUGE of texts split by `tokenizer`, or each by the script of its reference."""
    return TextMetric(
        len(ROUGE) + 1,
        rouge_counts(tokenizer),
        means(ROUGE),
        partial(rouge_signatures, tokenizer),
        partial(rouge_notes, tokenizer),
    )


def bleus(tokenizer: str = "13a", chosen: bool = True) -> TextMetric:
    """BLEU of texts split by one of sacrebleu's tokenizers; `chosen`: by the user."""
    return TextMetric(
        2 + 2 * BLEU_ORDER,
        bleu_counts(tokenizer),
        bleu_totals,
        lambda _: {"bleu": sacrebleu_signature(bleu(tokenizer))},
        lambda references: [] if chosen else bleu_notes(tokenizer, references),
    )


def counts_of(kinds: Sequence[TextMetric], predicted: str, right: str) -> list[float]:
    """The counts of a row for all `kinds` of scores, concatenated."""
    return [number for kind in kinds for number in kind.counts(predicted, right)]


def totals_of(kinds: Sequence[TextMetric], sums: Floats) -> dict[str, Floats]:
    """All scores of the `kinds` from sums of their counts."""
    found: dict[str, Floats] = {}
    start = 0
    for kind in kinds:
        found |= kind.totals(sums[:, start : start + kind.width])
        start += kind.width
    return found


def sacrebleu_signature(metric: Any) -> str:
    """The signature of a sacrebleu metric."""
    metric.corpus_score(["a"], [["a"]])  # a signature names the references it has seen
    return str(metric.get_signature())


def bleu_notes(tokenizer: str, references: Sequence[str]) -> list[str]:
    """That texts were not split as sacrebleu does by default, and how many that does not suit."""
    needs = Counter(map(needed_by, references))
    suited = {tokenizer} if tokenizer == "char" else {tokenizer, "13a"}
    others = sum(count for name, count in needs.items() if name not in suited)
    found = []
    if tokenizer != "13a":
        found.append(f"BLEU: texts are split by {tokenizer}, as the references' script needs")
    if others:
        found.append(f"BLEU: {tokenizer} does not suit {others} of {len(references)} references")
    return [f"{note} (task.score_tokenizer)" for note in found]


def distinct(texts: Sequence[str], order: int) -> float | None:
    """Different n-grams of words as a share of all (Li et al. 2016); None where there are none."""
    words = [split_words(text) for text in texts]
    grams = [tuple(w[i : i + order]) for w in words for i in range(len(w) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None
