"""Word and sentence splitting for texts of any script, with or without spaces between words."""

import re
import unicodedata
from collections.abc import Iterator

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー\p{Line_Break=Complex_Context}"
"""Scripts without spaces between words: Chinese, Japanese, and Unicode's line breaking class SA
(Thai, Lao, Khmer, Burmese, ...). Each of their characters counts as a word, with its marks."""
WORD = rf"[{UNSPACED}]\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+"
"""One word of a text, with the punctuation after it."""
WORDS = regex.compile(WORD, regex.V1)
TOKENS = regex.compile(
    rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]--[{UNSPACED}]]+", regex.V1
)
"""A run of letters, marks and digits; the two joiners occur inside Persian and Indic words."""
SENTENCE_ENDS = re.compile(
    r"(?<=[.!?।॥؟۔።။។])\s+|(?<=[。！？｡])(?![。！？｡」』”’）])\s*(?=\S)"  # noqa: RUF001
)
"""Boundaries between sentences; full-width marks need no space after them."""
PUNCTUATION = regex.compile(r"\p{P}+")


def split_words(text: str) -> list[str]:
    """Return the words between white space, and single characters of scripts without spaces."""
    return [word for part in text.split() for word in WORDS.findall(part)]


def normalize_words(text: str) -> Iterator[str]:
    """Yield the words in lower case and Unicode form NFKC, without surrounding punctuation."""
    found: Iterator[str] = TOKENS.findall(unicodedata.normalize("NFKC", text).lower())
    return iter(found)


def take_words(text: str, count: int) -> str:
    """Return the text up to its word number `count`, with the white space before and between
    them."""
    found = regex.match(rf"(?:\s*(?:{WORD})){{1,{count}}}", text, regex.V1)
    return found.group() if found else ""


def is_mostly_non_ascii(text: str) -> bool:
    """Return whether most letters of a text are not a to z."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(letter.isascii() for letter in letters) < len(letters)


def remove_punctuation(text: str) -> str:
    """Return the text without punctuation of any script."""
    return str(PUNCTUATION.sub("", text))
