"""Words of any script: what spaces divide, what they do not, and where sentences end."""

# ruff: noqa: RUF001

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.metrics.text import distinct
from peftkit.tasks.language_modeling.summarization import longest, parts_of
from peftkit.tasks.language_modeling.text_generation import TextGeneration
from peftkit.text.words import (
    SENTENCE_ENDS,
    is_mostly_non_ascii,
    normalize_words,
    split_words,
    take_words,
)

EUROPEAN = st.text(
    st.characters(max_codepoint=0x2E9, exclude_categories=["Cs", "Cc"]) | st.sampled_from(" \n\t"),
    max_size=60,
)


@given(EUROPEAN)
def test_texts_whose_words_spaces_divide_are_split_at_white_space_alone(text: str) -> None:
    assert split_words(text) == text.split()


@given(EUROPEAN, st.integers(1, 9))
def test_their_first_words_are_what_a_split_at_white_space_gives(text: str, count: int) -> None:
    usual = re.match(rf"\s*\S+(?:\s+\S+){{0,{count - 1}}}", text)
    assert take_words(text, count) == (usual.group() if usual else "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("天气 很好。", ["天", "气", "很", "好。"]),
        ("用GPT-2写 a poem", ["用", "GPT-2", "写", "a", "poem"]),
        ("カレーを3杯", ["カ", "レ", "ー", "を", "3", "杯"]),
        ("น้ำดื่ม", ["น้ำ"[:2], "ำ", "ดื่", "ม"]),
        ("ພາສາ", list("ພາສາ")),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया।"]),
        ("오늘 날씨가", ["오늘", "날씨가"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
    ],
)
def test_each_character_is_a_word_where_no_space_divides_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_tokens_are_letters_marks_and_digits_in_one_form_and_case() -> None:
    assert list(normalize_words("«Йод», ЁЛКА! 12 км")) == ["йод", "ёлка", "12", "км"]
    assert list(normalize_words("Ｔｏｋｙｏ２１、東京")) == ["tokyo21", "東", "京"]
    assert list(normalize_words("क्षमा, नहीं")) == ["क्षमा", "नहीं"]
    assert list(normalize_words("می‌خواهم؟")) == ["می‌خواهم"]
    assert list(normalize_words("й")) == list(normalize_words("й")) != list(normalize_words("и"))


def test_a_text_is_beyond_ascii_if_most_of_its_letters_are() -> None:
    assert is_mostly_non_ascii("Ответ: yes, да") and is_mostly_non_ascii("答 a") is False
    assert not any(map(is_mostly_non_ascii, ["", "123 !", "Häuser", "Tiếng Việt có dấu", "😀"]))


def test_the_opening_of_a_text_without_spaces_leaves_something_to_generate() -> None:
    task = TextGeneration(prompt_words=3)
    rows = {"text": ["  今天天气很好", "one two\n three four", "ab 东西 cd"]}
    assert task.prompt_rows(rows)["text"] == ["  今天天", "one two\n three", "ab 东西"]


def test_sentences_end_at_the_marks_of_their_script() -> None:
    assert parts_of("他来了。她走了！真的？“对。”") == ["他来了。", "她走了！", "真的？", "“对。”"]
    assert parts_of("वह आया। वह गया॥ कब?") == ["वह आया।", "वह गया॥", "कब?"]
    assert parts_of("هل؟ نعم. لا") == ["هل؟", "نعم.", "لا"]
    assert longest(["短句。", "这是更长的一句。"], 1) == ["这是更长的一句。"]


@given(EUROPEAN)
def test_other_sentences_end_where_they_did(text: str) -> None:
    assert SENTENCE_ENDS.split(text) == re.split(r"(?<=[.!?])\s+", text)


def test_how_varied_texts_are_is_told_of_characters_where_no_space_divides_words() -> None:
    assert distinct(["好好好", "好"], 1) == 1 / 4
    assert distinct(["好好好"], 2) == 1 / 2
