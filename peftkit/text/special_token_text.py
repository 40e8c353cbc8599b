"""Stand-ins: how special tokens in a user's text are told from those that a template writes.

A tokenizer reads its special tokens wherever it finds them, so that a text which speaks of `</s>`
ends early. Nothing here needs peftkit: `peftkit export` puts this file beside a model.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

FIRST = 0x100000
"""Private code points, which no writing uses: one a special token."""
FILLER = "\ufdd0"
"""No character at all: stand-ins are as long as what they stand for, so that places agree."""


class CannotTell(ValueError):
    """A tokenizer cannot read a special token both as itself and as text."""


def encode_text(tokenizer: Any, *texts: Sequence[str], **how: Any) -> Any:
    """What `tokenizer(*texts, **how)` gives, where special tokens in the texts are ordinary text.

    `texts` (or `text_target` in `how`) are lists. A text without special tokens has the tokens that
    it always had.
    """
    known = marks_of(tokenizer)
    targets = [how["text_target"]] if "text_target" in how else []
    if not any(map(known.holds, (text for column in (*texts, *targets) for text in column))):
        return tokenizer(*texts, **how)
    if targets:
        how["text_target"] = list(map(known.restored, how["text_target"]))
    return known.as_text(*(list(map(known.restored, column)) for column in texts), **how)


def encode_rendered(tokenizer: Any, texts: Sequence[str], **how: Any) -> Any:
    """What `tokenizer(texts, **how)` gives for texts that a template wrote: special tokens are
    themselves, but for those that `protect` replaced, which are ordinary text.

    Places (`return_offsets_mapping`) are those in the rendered texts, and in `restored` ones.
    Raises `CannotTell` where a tokenizer without a tokenizer.json is given both.
    """
    known = marks_of(tokenizer)
    if not any(map(known.stands_in, texts)):
        return tokenizer(list(texts), **how)
    swapped = [known.swapped(text) for text in texts]
    if not tokenizer.is_fast and any(map(known.stands_in, swapped)):
        what = f"its tokenizer ({type(tokenizer).__name__}) cannot tell special tokens of a prompt "
        what += "from the same in a text - use a model with a tokenizer.json, or mend the texts"
        raise CannotTell(what)
    found = known.as_text(swapped, **how)
    found["input_ids"] = [[known.own.get(i, i) for i in ids] for ids in found["input_ids"]]
    return found


def protect(tokenizer: Any, text: str) -> str:
    """A user's text, for a template: each special token in it is replaced by its stand-in."""
    return marks_of(tokenizer).protected(text)


def restored(tokenizer: Any, text: str) -> str:
    """A text with what `protect` replaced as it was."""
    return marks_of(tokenizer).restored(text)


class Marks:
    """A tokenizer's special tokens with their stand-ins."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        named = {str(token.content) for token in added if token.special}
        tokens = sorted(named | set(map(str, tokenizer.all_special_tokens)))
        self.stand_ins = {
            token: chr(FIRST + number) + FILLER * (len(token) - 1)
            for number, token in enumerate(tokens)
        }
        self.originals = {stands: token for token, stands in self.stand_ins.items()}
        self.pattern, self.reverse = map(any_of, (self.stand_ins, self.originals))

    def holds(self, text: str) -> bool:
        """Whether the text has a special token in it."""
        return self.pattern.search(text) is not None

    def stands_in(self, text: str) -> bool:
        """Whether the text has a stand-in in it."""
        return self.reverse.search(text) is not None

    def protected(self, text: str) -> str:
        """The text with stand-ins for special tokens."""
        return self.pattern.sub(lambda hit: self.stand_ins[hit[0]], text)

    def restored(self, text: str) -> str:
        """The text with special tokens for stand-ins."""
        return self.reverse.sub(lambda hit: self.originals[hit[0]], text)

    def swapped(self, text: str) -> str:
        """The text with each for the other."""
        parts = re.split(f"({self.reverse.pattern})", text)
        return "".join(self.originals.get(part) or self.protected(part) for part in parts)

    def found_in(self, cell: Any) -> Iterator[str]:
        """The special tokens in a cell: a text, a list, or a mapping of such."""
        if isinstance(cell, str):
            yield from (hit[0] for hit in self.pattern.finditer(cell))
        elif isinstance(cell, (list, tuple, dict)):
            for part in cell.values() if isinstance(cell, dict) else cell:
                yield from self.found_in(part)

    @cached_property
    def own(self) -> dict[int, int]:
        """The ids of the copy's stand-ins, and of the special tokens that they stand for."""
        if not self.tokenizer.is_fast:
            return {}
        to_id = self.copied.convert_tokens_to_ids
        pairs = self.stand_ins.items()
        return {to_id(stands): self.tokenizer.convert_tokens_to_ids(t) for t, stands in pairs}

    def as_text(self, *texts: Sequence[str], **how: Any) -> Any:
        """Tokens of texts in which only stand-ins are special tokens."""
        if not self.tokenizer.is_fast:
            return self.tokenizer(*texts, split_special_tokens=True, **how)
        if getattr(self.tokenizer, "src_lang", None) is not None:  # may be named at any time
            for name in ("src_lang", "tgt_lang"):
                setattr(self.copied, name, getattr(self.tokenizer, name))
        return self.copied(*texts, split_special_tokens=True, **how)

    @cached_property
    def copied(self) -> Any:
        """A copy of the tokenizer that has the stand-ins as tokens.

        tokenizers 0.23 still finds a special token in a text that is not to be split at it where
        the token is a piece of the vocabulary too (T5, XLM-R), as sentencepiece would not: those
        pieces have another name in the copy.
        """
        from tokenizers import AddedToken, Tokenizer

        other = copy.deepcopy(self.tokenizer)
        backend = other.backend_tokenizer
        said = json.loads(backend.to_str())
        bare = {**said, "added_tokens": [], "post_processor": None}
        bare["model"] = without_pieces(said["model"], self.stand_ins)
        backend.model = Tokenizer.from_str(json.dumps(bare)).model
        how = {each["content"]: each for each in said["added_tokens"]}
        strips = ("lstrip", "rstrip", "single_word")
        backend.add_tokens(
            [
                AddedToken(stands, normalized=False, **{k: how[token][k] for k in strips})
                for token, stands in self.stand_ins.items()
            ]
        )
        return other


@lru_cache(maxsize=4)
def marks_of(tokenizer: Any) -> Marks:
    """The special tokens of a tokenizer, found once."""
    return Marks(tokenizer)


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """What finds any of the words, the longest of those that fit."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def without_pieces(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A model of tokenizers' (as JSON) in which the pieces called so have the other names."""
    if isinstance(model["vocab"], list):  # Unigram's, with scores
        return {**model, "vocab": [[names.get(p, p), score] for p, score in model["vocab"]]}
    changed: dict[str, Any] = {"vocab": {names.get(p, p): i for p, i in model["vocab"].items()}}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        kept = [(a, b) for a, b in model["merges"] if not {a, b, a + b} & set(names)]
        changed["merges"] = kept
    return {**model, **changed}
