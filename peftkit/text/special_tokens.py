"""Special tokens: a `</s>` or `[SEP]` that stands in a user's text is text as any other.

A tokenizer reads its special tokens wherever it finds them, so that a text which speaks of `</s>`
ends early. Texts go through `encode_text`. What a template writes around texts goes through
`encode_rendered`, whose special tokens are the template's own, and the texts in it through
`protect` before.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from peftkit.errors import Fault, RecipeError
from peftkit.text import special_token_text
from peftkit.text.special_token_text import encode_text, marks_of, protect, restored

__all__ = ["encode_rendered", "encode_text", "marks_of", "note_on_texts", "protect", "restored"]


def encode_rendered(tokenizer: Any, texts: Sequence[str], **how: Any) -> Any:
    """What `special_token_text.encode_rendered` gives.

    Raises `RecipeError` where a tokenizer without a tokenizer.json is given a special token both in
    a text and around it.
    """
    try:
        return special_token_text.encode_rendered(tokenizer, texts, **how)
    except special_token_text.CannotTell as error:
        fault = Fault("model", str(error))
        raise RecipeError("the model does not suit the task:", [fault]) from None


def note_on_texts(
    tokenizer: Any, columns: Iterable[Sequence[Any]], rows: int, but: Collection[str] = ()
) -> tuple[str, ...]:
    """What a reader of the scores must know of special tokens, all `but` these, in the `columns` of
    texts that train's rows have."""
    known, found = marks_of(tokenizer), dict[int, str]()
    for column in columns:
        for row, cell in enumerate(column):
            if hit := next((token for token in known.found_in(cell) if token not in but), None):
                found.setdefault(row, hit)
    if not found:
        return ()
    what = f"{len(found)} of {rows} rows hold a special token of the tokenizer"
    return (f"train: {what} ({next(iter(found.values()))!r}), which is read as ordinary text",)
