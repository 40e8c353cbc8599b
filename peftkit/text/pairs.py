"""Texts: one or two of them a row as token ids, cut where they are too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.text.special_tokens import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_texts(
    rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """Columns `input_ids`, the tokenizer's `token_type_ids` and `truncated` of the rows' `text` and
    `text_pair`: only texts that are too long are cut, in the tokenizer's own way."""
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


def natural_order(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before words by the alphabet."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
