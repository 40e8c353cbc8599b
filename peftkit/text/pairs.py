"""Tokenization of single texts and text pairs for classification and regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.text.special_tokens import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_texts(
    rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """Return columns `input_ids`, `token_type_ids` (if the tokenizer has them) and `truncated` for
    the rows' `text` and `text_pair`, truncated to `max_length` tokens by the tokenizer's own
    strategy."""
    texts = [rows["text"]] + ([rows["text_pair"]] if "text_pair" in rows else [])
    whole = encode_text(tokenizer, *texts, verbose=False)
    columns = {k: whole[k] for k in ("input_ids", "token_type_ids") if k in whole}
    long = [i for i, tokens in enumerate(whole["input_ids"]) if len(tokens) > max_length]
    if long:
        again = [[text[i] for i in long] for text in texts]
        cut = encode_text(tokenizer, *again, truncation=True, max_length=max_length)
        for key, column in columns.items():
            for row, tokens in zip(long, cut[key], strict=True):
                column[row] = tokens
    cut_rows = set(long)
    return {**columns, "truncated": [row in cut_rows for row in range(len(texts[0]))]}


def natural_sort_key(name: str) -> tuple[int, float, str]:
    """Return a sort key that orders numbers by value, before other names in alphabetical order."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
