"""Rendered conversations as token ids and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftkit.errors import DataError, Fault
from peftkit.text.chat_templates import ChatTemplate, RenderedChat, special_token_ids
from peftkit.text.special_tokens import encode_rendered, unescape_special_tokens


@dataclass(frozen=True)
class TokenizedChat:
    """A text as tokens and labels."""

    input_ids: list[int]
    labels: list[int]
    """Token ids to predict, -100 elsewhere."""
    num_bytes: int
    """UTF-8 bytes of the text to predict, without special tokens and after truncation."""
    truncated: bool


def tokenize_chats(
    rendered: Sequence[RenderedChat], template: ChatTemplate, max_length: int
) -> list[TokenizedChat]:
    """Return texts as tokens, with the answers and their end tokens as labels, truncated to
    `max_length`.

    An answer begins after the tokens of the text before it, as in generation; if the whole text
    does not begin with these tokens, with the first token that overlaps the answer.
    """
    tokenizer = template.tokenizer
    if not tokenizer.is_fast:
        what = "its tokenizer has no character offsets - use a model with a tokenizer.json"
        raise DataError("the model does not suit the task:", [Fault("model", what)])
    prefixes = [
        part for r in rendered for s in r.spans for part in (r.text[: s[0]], r.text[: s[1]])
    ]
    how = {"add_special_tokens": False, "verbose": False}
    parts = iter(encode_rendered(tokenizer, prefixes, **how)["input_ids"] if prefixes else [])
    texts = [r.text for r in rendered]
    whole = encode_rendered(tokenizer, texts, return_offsets_mapping=True, **how)
    found = []
    for r, ids, offsets in zip(rendered, whole["input_ids"], whole["offset_mapping"], strict=True):
        ranges = [find_token_range(ids, offsets, s, next(parts), next(parts)) for s in r.spans]
        found.append(truncate_chat(r, list(ids), offsets, ranges, template, max_length))
    return found


def find_token_range(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    before: Sequence[int],
    upto: Sequence[int],
) -> tuple[int, int]:
    """Return the first token of an answer and the one after its last."""
    start, end = len(before), len(upto)
    if list(ids[:start]) != list(before):
        start = next((i for i, o in enumerate(offsets) if o[1] > span[0]), len(ids))
    if list(ids[:end]) != list(upto):
        end = next((i for i, o in enumerate(offsets) if o[0] >= span[1]), len(ids))
    return start, end


def truncate_chat(
    rendered: RenderedChat,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    ranges: Sequence[tuple[int, int]],
    template: ChatTemplate,
    max_length: int,
) -> TokenizedChat:
    """Return a text's tokens, at most `max_length`; an end token is added to the last answer if
    needed."""
    tokenizer = template.tokenizer
    special = special_token_ids(tokenizer) | {template.end_id}
    kept = [(first, min(end, max_length)) for first, end in ranges]
    last = ranges[-1][1]
    ids = ids[:last]  # text of the template after the last answer is not trained on
    ends = tokenizer.eos_token_id
    if ends is not None and ids and ids[-1] not in special:
        ids.append(ends)
        kept[-1] = (kept[-1][0], min(last + 1, max_length))
    labels = [-100] * len(ids)
    num_bytes = 0
    for (first, end), (begins, stops) in zip(kept, rendered.spans, strict=True):
        labels[first:end] = ids[first:end]
        inside = min(end, len(offsets))
        stop = min(stops, offsets[inside - 1][1]) if first < end and inside else begins
        num_bytes += count_bytes(rendered.text[begins:stop], tokenizer)
    return TokenizedChat(ids[:max_length], labels[:max_length], num_bytes, len(ids) > max_length)


def extract_answer(rendered: RenderedChat, prompt: str, template: ChatTemplate) -> str:
    """Return the last answer of a text as it would be generated after `prompt`, without end and
    special tokens."""
    start = len(prompt) if rendered.text.startswith(prompt) else rendered.spans[-1][0]
    answer = rendered.text[start : rendered.spans[-1][1]]
    end = template.tokenizer.convert_ids_to_tokens(template.stop_ids())
    return strip_special_tokens(answer, template.tokenizer, end).strip()


def count_bytes(text: str, tokenizer: Any) -> int:
    """Return the UTF-8 bytes of the text without special tokens."""
    return len(strip_special_tokens(text, tokenizer).encode("utf-8", "surrogatepass"))


def strip_special_tokens(text: str, tokenizer: Any, ends: Sequence[str] = ()) -> str:
    """Return the text without special tokens and `ends`, unescaped."""
    for token in (*special_token_texts(tokenizer), *ends):
        text = text.replace(token, "")
    return unescape_special_tokens(tokenizer, text)


def special_token_texts(tokenizer: Any) -> list[str]:
    """Return the special tokens as strings."""
    return [str(t) for t in tokenizer.convert_ids_to_tokens(sorted(special_token_ids(tokenizer)))]
