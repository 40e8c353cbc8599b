"""Tokenization of texts that contain special tokens, which a tokenizer would otherwise act on.

A tokenizer recognizes its special tokens anywhere, so a text that quotes `</s>` would end early.
This file needs no other part of peftkit: `peftkit export` copies it into the exported folder.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

FIRST = 0x100000
"""First of the private-use code points, one per special token."""
FILLER = "\ufdd0"
"""A noncharacter: it makes placeholders as long as their tokens, so that offsets agree."""


class AmbiguousSpecialToken(ValueError):
    """A tokenizer cannot encode a special token both as itself and as text."""


def encode_text(tokenizer: Any, *texts: Sequence[str], **how: Any) -> Any:
    """Return `tokenizer(*texts, **how)` with special tokens inside the texts read as ordinary text.

    `texts` (or `text_target` in `how`) are lists. Texts without special tokens get the same tokens
    as from the tokenizer itself.
    """
    known = get_escaper(tokenizer)
    targets = [how["text_target"]] if "text_target" in how else []
    if not any(map(known.has_token, (text for column in (*texts, *targets) for text in column))):
        return tokenizer(*texts, **how)
    if targets:
        how["text_target"] = list(map(known.unescape, how["text_target"]))
    return known.tokenize(*(list(map(known.unescape, column)) for column in texts), **how)


def encode_rendered(tokenizer: Any, texts: Sequence[str], **how: Any) -> Any:
    """Return `tokenizer(texts, **how)` for texts rendered by a template: special tokens are
    special, except those that `escape_special_tokens` replaced, which are ordinary text.

    Offsets (`return_offsets_mapping`) hold in the given and in the unescaped texts. Raises
    `AmbiguousSpecialToken` if a tokenizer without a tokenizer.json is given both.
    """
    known = get_escaper(tokenizer)
    if not any(map(known.has_placeholder, texts)):
        return tokenizer(list(texts), **how)
    swapped = [known.swap(text) for text in texts]
    if not tokenizer.is_fast and any(map(known.has_placeholder, swapped)):
        what = f"its tokenizer ({type(tokenizer).__name__}) cannot encode special tokens both "
        what += "in a prompt and in a text - use a model with a tokenizer.json, or fix the texts"
        raise AmbiguousSpecialToken(what)
    found = known.tokenize(swapped, **how)
    found["input_ids"] = [[known.token_ids.get(i, i) for i in ids] for ids in found["input_ids"]]
    return found


def escape_special_tokens(tokenizer: Any, text: str) -> str:
    """Replace each special token in a user's text by a placeholder, before a template renders
    it."""
    return get_escaper(tokenizer).escape(text)


def unescape_special_tokens(tokenizer: Any, text: str) -> str:
    """Undo `escape_special_tokens`."""
    return get_escaper(tokenizer).unescape(text)


class SpecialTokenEscaper:
    """The special tokens of a tokenizer, each with its placeholder."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        named = {str(token.content) for token in added if token.special}
        tokens = sorted(named | set(map(str, tokenizer.all_special_tokens)))
        self.placeholders = {
            token: chr(FIRST + number) + FILLER * (len(token) - 1)
            for number, token in enumerate(tokens)
        }
        self.originals = {placeholder: token for token, placeholder in self.placeholders.items()}
        self.pattern, self.reverse = map(match_any, (self.placeholders, self.originals))

    def has_token(self, text: str) -> bool:
        """Return whether the text contains a special token."""
        return self.pattern.search(text) is not None

    def has_placeholder(self, text: str) -> bool:
        """Return whether the text contains a placeholder."""
        return self.reverse.search(text) is not None

    def escape(self, text: str) -> str:
        """Replace special tokens by placeholders."""
        return self.pattern.sub(lambda hit: self.placeholders[hit[0]], text)

    def unescape(self, text: str) -> str:
        """Replace placeholders by special tokens."""
        return self.reverse.sub(lambda hit: self.originals[hit[0]], text)

    def swap(self, text: str) -> str:
        """Replace special tokens by placeholders and placeholders by special tokens."""
        parts = re.split(f"({self.reverse.pattern})", text)
        return "".join(self.originals.get(part) or self.escape(part) for part in parts)

    def find_tokens(self, cell: Any) -> Iterator[str]:
        """Yield the special tokens in a text, or in the texts of a list or mapping."""
        if isinstance(cell, str):
            yield from (hit[0] for hit in self.pattern.finditer(cell))
        elif isinstance(cell, (list, tuple, dict)):
            for part in cell.values() if isinstance(cell, dict) else cell:
                yield from self.find_tokens(part)

    @cached_property
    def token_ids(self) -> dict[int, int]:
        """The id of each placeholder in the tokenizer's copy, with the id of its special token."""
        if not self.tokenizer.is_fast:
            return {}
        to_id = self.tokenizer_copy.convert_tokens_to_ids
        pairs = self.placeholders.items()
        return {
            to_id(placeholder): self.tokenizer.convert_tokens_to_ids(t) for t, placeholder in pairs
        }

    def tokenize(self, *texts: Sequence[str], **how: Any) -> Any:
        """Tokenize texts in which only placeholders are special tokens."""
        if not self.tokenizer.is_fast:
            return self.tokenizer(*texts, split_special_tokens=True, **how)
        if getattr(self.tokenizer, "src_lang", None) is not None:  # may be named at any time
            for name in ("src_lang", "tgt_lang"):
                setattr(self.tokenizer_copy, name, getattr(self.tokenizer, name))
        return self.tokenizer_copy(*texts, split_special_tokens=True, **how)

    @cached_property
    def tokenizer_copy(self) -> Any:
        """A copy of the tokenizer with the placeholders as tokens.

        tokenizers 0.23 finds a special token even in a text that it must not split there if the
        token is also in the model's vocabulary (T5, XLM-R), unlike sentencepiece: these entries are
        renamed in the copy.
        """
        from tokenizers import AddedToken, Tokenizer

        other = copy.deepcopy(self.tokenizer)
        backend = other.backend_tokenizer
        config = json.loads(backend.to_str())
        bare = {**config, "added_tokens": [], "post_processor": None}
        bare["model"] = rename_tokens(config["model"], self.placeholders)
        backend.model = Tokenizer.from_str(json.dumps(bare)).model
        how = {each["content"]: each for each in config["added_tokens"]}
        strips = ("lstrip", "rstrip", "single_word")
        backend.add_tokens(
            [
                AddedToken(placeholder, normalized=False, **{k: how[token][k] for k in strips})
                for token, placeholder in self.placeholders.items()
            ]
        )
        return other


@lru_cache(maxsize=4)
def get_escaper(tokenizer: Any) -> SpecialTokenEscaper:
    """Return the escaper of a tokenizer, made once."""
    return SpecialTokenEscaper(tokenizer)


def match_any(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the words, longer ones first."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def rename_tokens(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a model of the tokenizers library (as JSON) with vocabulary entries renamed."""
    if isinstance(model["vocab"], list):  # Unigram's, with scores
        return {**model, "vocab": [[names.get(p, p), score] for p, score in model["vocab"]]}
    changed: dict[str, Any] = {"vocab": {names.get(p, p): i for p, i in model["vocab"].items()}}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        kept = [(a, b) for a, b in model["merges"] if not {a, b, a + b} & set(names)]
        changed["merges"] = kept
    return {**model, **changed}
