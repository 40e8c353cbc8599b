"""Tokenization of texts that contain special tokens, with errors that name the setting to change.

A tokenizer recognizes its special tokens anywhere, so a text that quotes `</s>` would end early.
Plain texts are encoded by `encode_text`. Texts of a template are passed through
`escape_special_tokens` first, and the result of the template through `encode_rendered`.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from peftkit.errors import Fault, RecipeError
from peftkit.text import special_token_text
from peftkit.text.special_token_text import (
    encode_text,
    escape_special_tokens,
    get_escaper,
    unescape_special_tokens,
)

__all__ = [
    "encode_rendered",
    "encode_text",
    "escape_special_tokens",
    "get_escaper",
    "note_special_tokens",
    "unescape_special_tokens",
]


def encode_rendered(tokenizer: Any, texts: Sequence[str], **how: Any) -> Any:
    """Return `special_token_text.encode_rendered`.

    Raises `RecipeError` if a tokenizer without a tokenizer.json would have to read a special token
    both as text and as itself.
    """
    try:
        return special_token_text.encode_rendered(tokenizer, texts, **how)
    except special_token_text.AmbiguousSpecialToken as error:
        fault = Fault("model", str(error))
        raise RecipeError("the model does not suit the task:", [fault]) from None


def note_special_tokens(
    tokenizer: Any, columns: Iterable[Sequence[Any]], rows: int, but: Collection[str] = ()
) -> tuple[str, ...]:
    """Return a note if texts in the `columns` of the training rows contain special tokens other
    than `but`."""
    known, found = get_escaper(tokenizer), dict[int, str]()
    for column in columns:
        for row, cell in enumerate(column):
            if hit := next((token for token in known.find_tokens(cell) if token not in but), None):
                found.setdefault(row, hit)
    if not found:
        return ()
    what = f"{len(found)} of {rows} rows contain a special token of the tokenizer"
    return (f"train: {what} ({next(iter(found.values()))!r}), which is read as ordinary text",)
