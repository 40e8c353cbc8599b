"""Answers: read, found and repaired; SQuAD's own scores; the best spans and thresholds."""

import collections
import re
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.tasks.question_answering.decoding import best_spans, trimmed
from peftkit.tasks.question_answering.scoring import (
    best_match,
    best_threshold,
    most_alike,
    sentences_of,
)
from peftkit.tasks.question_answering.spans import Answer, answers_in, first_found, located

# the functions of the published scripts, as the SQuAD papers define the scores


def official_normalize(text: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(text.lower())))


def official_f1(said: str, gold: str, version: int) -> float:
    ours, theirs = official_normalize(said).split(), official_normalize(gold).split()
    common = collections.Counter(ours) & collections.Counter(theirs)
    num_same = sum(common.values())
    if version == 2 and (len(theirs) == 0 or len(ours) == 0):
        return int(theirs == ours)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(ours), 1.0 * num_same / len(theirs)
    return (2 * precision * recall) / (precision + recall)


def official(said: str, golds: list[str], version: int) -> tuple[float, float]:
    if version == 2:
        golds = [gold for gold in golds if official_normalize(gold)] or [""]
    exact = max(official_normalize(said) == official_normalize(gold) for gold in golds)
    return float(exact), max(official_f1(said, gold, version) for gold in golds)


WORDS = ["The", "a", "an", "Paris", "paris,", "U.S.", "theatre", "of", "1,000", "-", "é", " ", "İ"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join) | st.text(max_size=12)


@settings(max_examples=400, deadline=None)
@given(said=TEXTS, golds=st.lists(TEXTS, min_size=1, max_size=4), version=st.sampled_from([1, 2]))
def test_scores_are_those_of_the_official_scripts(
    said: str, golds: list[str], version: int
) -> None:
    assert best_match(said, golds, nothing=version == 2) == official(said, golds, version)


def test_no_answer_is_right_where_there_is_none_and_nothing_else_is() -> None:
    assert best_match("", [], nothing=True) == (1.0, 1.0)
    assert best_match("Paris", [], nothing=True) == (0.0, 0.0)
    assert best_match("", ["Paris"], nothing=True) == (0.0, 0.0)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_no_threshold_gives_a_better_f1_than_the_one_chosen(rows: list[Any]) -> None:
    margins = np.array([margin for margin, _, _ in rows], dtype=float)
    there = np.array([float(answer) for _, _, answer in rows])
    gains = np.array([f1 if answer else 0.0 for _, f1, answer in rows])

    def score(threshold: float) -> float:
        return float(np.where(margins > threshold, 1 - there, gains).sum())

    chosen = best_threshold(margins, gains, there)
    assert score(chosen) == max(map(score, [-9.0, *margins]))


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.integers(0, 9),
    longest=st.integers(1, 12),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_best_spans_are_those_of_a_slow_search(
    tokens: int, longest: int, count: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).integers(-3, 4, (tokens, 2)).astype(np.float32)
    every = [
        (float(logits[i, 0] + logits[j, 1]), i, j)
        for i in range(tokens)
        for j in range(i, min(tokens, i + longest))
    ]
    slow = sorted(every, key=lambda span: (-span[0], span[1], span[2]))[:count]
    assert best_spans(logits, longest, count) == slow


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["Paris", "in Paris"], "answer_start": [3, 0]},
        [{"text": "Paris", "answer_start": 3}, {"text": " in Paris", "answer_start": -1}],
    ],
)
def test_answers_are_read_in_every_usual_form(cell: Any) -> None:
    assert answers_in(cell) == [Answer("Paris", 3), Answer("in Paris", 0)]


def test_texts_alone_and_no_answers_are_read() -> None:
    assert answers_in("[sic] Paris") == [Answer("[sic] Paris", None)]
    assert answers_in({"text": ["Paris"]}) == [Answer("Paris", None)]
    for nothing in (None, [], {"text": [], "answer_start": []}, {"text": [" "]}, ""):
        assert answers_in(nothing) == []


@pytest.mark.parametrize(
    "cell", [5, {"text": 5}, {"text": ["a", "b"], "answer_start": [1]}, [["a"]], {"start": 1}]
)
def test_what_is_no_answer_is_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="answer"):
        answers_in(cell)


def test_a_wrong_offset_is_mended_only_where_the_text_stands_once() -> None:
    context = "a dog, a cat and a dog"
    assert located(context, Answer("dog", 19)) == ("said", 19)
    assert located(context, Answer("cat", 3)) == ("repaired", 9)
    assert located(context, Answer("cat", None)) == ("said", 9)
    assert located(context, Answer("dog", 3)) == ("ambiguous", None)
    assert located(context, Answer("Cat", 9)) == ("unfound", None)
    assert located(context, Answer("cat", -1)) == ("repaired", 9)
    assert first_found(context, [Answer("Cat", 9), Answer("cat", 3), Answer("dog", 2)]) == (9, 12)
    assert first_found(context, [Answer("fox", 0)]) is None


def test_sentences_end_at_their_stops_and_the_one_most_like_the_question_is_found() -> None:
    text = "It rained. Who came?  Mr. Fog did! \n The end"
    parts = [text[start:end] for start, end in sentences_of(text)]
    assert parts == ["It rained.", "Who came?", "Mr.", "Fog did!", "The end"]
    start, end = most_alike("What did the fog do?", text)
    assert text[start:end] == "Fog did!"
    assert most_alike("Zebra?", text) == (0, 10)


def test_white_space_around_a_span_is_no_part_of_it() -> None:
    assert trimmed("in  Paris .", 2, 10) == (4, 9)
    assert trimmed("a   b", 1, 4) == (1, 1)
