"""Scores of texts: their totals are the reference libraries' values, on random and odd texts."""

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from peftkit.metrics.text import (
    CHRF,
    EXACT,
    ROUGE,
    TextMetric,
    bleus,
    counts_of,
    distinct,
    final_answer,
    is_same,
    rouges,
    totals_of,
)

BLEU, ROUGES = bleus(), rouges()

WORDS = ["the", "cat", "dog", "sat", "on", "a", "mat", ".", ",", "é", "12", "Häuser", "running"]
ODD = [("", ""), ("", "a b"), ("a b", ""), ("the cat", "the cat"), ("x", "y"), ("!!", "!!")]


def texts(seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=chance.choice([0, 1, 2, 3, 6, 12])))

    return [(text(), text()) for _ in range(chance.randint(1, 5))]


def scores(kinds: list[TextMetric], pairs: list[tuple[str, str]]) -> dict[str, float]:
    counts = np.asarray([counts_of(kinds, said, right) for said, right in pairs])
    found = totals_of(kinds, counts.sum(axis=0, keepdims=True))
    return {name: float(value[0]) for name, value in found.items()}


CASES = [texts(seed) for seed in range(150)] + [[pair] for pair in ODD] + [ODD]


def test_chrf_and_bleu_are_sacrebleus() -> None:
    for pairs in CASES:
        said, right = map(list, zip(*pairs, strict=True))
        found = scores([CHRF, BLEU], pairs)
        assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score, abs=1e-9)
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score, abs=1e-9)


def test_rouge_is_the_mean_of_rouge_scores_f_measures() -> None:
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    for pairs in CASES[::5]:
        found = scores([ROUGES], pairs)
        for name in ROUGE:
            rows = [scorer.score(right, said)[name].fmeasure for said, right in pairs]
            assert found[name] == pytest.approx(sum(rows) / len(rows), abs=1e-12)


def test_many_sums_at_once_give_what_each_gives_alone() -> None:
    kinds = [EXACT, ROUGES, CHRF, BLEU]
    counts = [np.asarray([counts_of(kinds, *pair) for pair in p]).sum(axis=0) for p in CASES]
    together = totals_of(kinds, np.stack(counts))
    for index, each in enumerate(counts):
        alone = totals_of(kinds, each[None])
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][index], value[0], rtol=1e-12)


def test_signatures_say_how_sacrebleu_counts() -> None:
    assert CHRF.signatures([])["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    assert "tok:13a|smooth:exp" in BLEU.signatures([])["bleu"]
    assert EXACT.signatures([]) == {}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7\n#### 7", "7.0"),
        ("#### 1,200", "1200.0"),
        ("#### $12.50", "12.5"),
        ("#### 5\n#### 6 ", "6.0"),
        ("#### seven", "seven"),
        ("no answer", None),
    ],
)
def test_the_final_answer_is_the_last_match_and_numbers_are_numbers(
    text: str, answer: str | None
) -> None:
    assert final_answer(text, r"####\s*(.+)") == answer


def test_texts_are_the_same_but_for_white_space_or_by_their_final_answers() -> None:
    assert is_same("a  b\n", "a b", None) and not is_same("a b", "a c", None)
    assert is_same("long way\n#### 18", "other way #### 18.0", r"####\s*(.+)")
    assert not is_same("nothing", "nothing", r"####\s*(.+)")


def test_distinct_n_grams_are_counted_over_all_texts() -> None:
    assert distinct(["a b a b", "a b"], 1) == 2 / 6
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert distinct(["a"], 2) is None
