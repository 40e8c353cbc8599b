"""Words: how texts of any script are split, whether spaces divide their words or not."""

import re
import unicodedata
from collections.abc import Iterator

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー\p{Line_Break=Complex_Context}"
"""Scripts whose words no space divides: Chinese and Japanese, and those of Unicode's line breaking
class SA (Thai, Lao, Khmer, Burmese, ...). Here each character is a word, with its marks."""
WORD = rf"[{UNSPACED}]\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+"
"""One word of a text, the punctuation behind it included."""
WORDS = regex.compile(WORD, regex.V1)
TOKENS = regex.compile(
    rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]--[{UNSPACED}]]+", regex.V1
)
"""Letters, marks and digits in one piece; the two joiners stand inside Persian and Indic words."""
SENTENCE_ENDS = re.compile(
    r"(?<=[.!?।॥؟۔።။។])\s+|(?<=[。！？｡])(?![。！？｡」』”’）])\s*(?=\S)"  # noqa: RUF001
)
"""Where one sentence ends and another begins; full-width marks need no space behind them."""
PUNCTUATION = regex.compile(r"\p{P}+")


def words_of(text: str) -> list[str]:
    """The words between white space; each character alone where no space divides words."""
    return [word for part in text.split() for word in WORDS.findall(part)]


def tokens_of(text: str) -> Iterator[str]:
    """The words in lower case and in one Unicode form (NFKC), without what stands around them."""
    found: Iterator[str] = TOKENS.findall(unicodedata.normalize("NFKC", text).lower())
    return iter(found)


def first_words(text: str, count: int) -> str:
    """The text up to its word number `count`, with the white space before and between them."""
    found = regex.match(rf"(?:\s*(?:{WORD})){{1,{count}}}", text, regex.V1)
    return found.group() if found else ""


def is_beyond_ascii(text: str) -> bool:
    """Whether most letters of a text are none of a to z."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(letter.isascii() for letter in letters) < len(letters)


def without_punctuation(text: str) -> str:
    """The text without any script's punctuation."""
    return str(PUNCTUATION.sub("", text))
