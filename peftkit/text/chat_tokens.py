"""Chat tokens: conversations that a template wrote as token ids, and what of them is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftkit.errors import DataError, Fault
from peftkit.text.chat_templates import Rendered, Template, special_ids
from peftkit.text.special_tokens import encode_rendered, restored


@dataclass(frozen=True)
class Tokens:
    """A text as tokens, with what is learned from them."""

    input_ids: list[int]
    labels: list[int]
    """The ids of the tokens to be said, -100 elsewhere."""
    num_bytes: int
    """Bytes (UTF-8) of the text that is to be said and was not cut away, special tokens apart."""
    truncated: bool


def tokens_of(rendered: Sequence[Rendered], template: Template, max_length: int) -> list[Tokens]:
    """Texts as tokens of which the answers are learned, their ends too; cut at `max_length`.

    An answer begins behind the tokens of the text before it, as it will when it is asked for; where
    these are not the beginning of the whole's tokens, with the first token that holds some of it.
    """
    tokenizer = template.tokenizer
    if not tokenizer.is_fast:
        what = "the model's tokenizer cannot say which characters a token stands for - use another"
        raise DataError("the model does not suit the task:", [Fault("model", what)])
    pieces = [part for r in rendered for s in r.spans for part in (r.text[: s[0]], r.text[: s[1]])]
    how = {"add_special_tokens": False, "verbose": False}
    parts = iter(encode_rendered(tokenizer, pieces, **how)["input_ids"] if pieces else [])
    texts = [r.text for r in rendered]
    whole = encode_rendered(tokenizer, texts, return_offsets_mapping=True, **how)
    found = []
    for r, ids, offsets in zip(rendered, whole["input_ids"], whole["offset_mapping"], strict=True):
        ranges = [token_range(ids, offsets, s, next(parts), next(parts)) for s in r.spans]
        found.append(cut(r, list(ids), offsets, ranges, template, max_length))
    return found


def token_range(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    before: Sequence[int],
    upto: Sequence[int],
) -> tuple[int, int]:
    """The first token of an answer and the one behind its last."""
    start, end = len(before), len(upto)
    if list(ids[:start]) != list(before):
        start = next((i for i, o in enumerate(offsets) if o[1] > span[0]), len(ids))
    if list(ids[:end]) != list(upto):
        end = next((i for i, o in enumerate(offsets) if o[0] >= span[1]), len(ids))
    return start, end


def cut(
    rendered: Rendered,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    ranges: Sequence[tuple[int, int]],
    template: Template,
    max_length: int,
) -> Tokens:
    """One text's tokens within `max_length`; the last answer ends with a token that says so."""
    tokenizer = template.tokenizer
    special = special_ids(tokenizer) | {template.end_id}
    kept = [(first, min(end, max_length)) for first, end in ranges]
    last = ranges[-1][1]
    ids = ids[:last]  # what a template puts behind the last answer is not asked for
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
        num_bytes += size_of(rendered.text[begins:stop], tokenizer)
    return Tokens(ids[:max_length], labels[:max_length], num_bytes, len(ids) > max_length)


def spoken(rendered: Rendered, prompt: str, template: Template) -> str:
    """The last answer of a text as it is generated behind its prompt, ends and special tokens
    apart."""
    start = len(prompt) if rendered.text.startswith(prompt) else rendered.spans[-1][0]
    said = rendered.text[start : rendered.spans[-1][1]]
    end = template.tokenizer.convert_ids_to_tokens(template.stop_ids())
    return written(said, template.tokenizer, end).strip()


def size_of(text: str, tokenizer: Any) -> int:
    """Bytes of the text without the template's special tokens."""
    return len(written(text, tokenizer).encode("utf-8", "surrogatepass"))


def written(text: str, tokenizer: Any, ends: Sequence[str] = ()) -> str:
    """The text without the template's special tokens and such ends."""
    for token in (*special_tokens(tokenizer), *ends):
        text = text.replace(token, "")
    return restored(tokenizer, text)


def special_tokens(tokenizer: Any) -> list[str]:
    """The same tokens as text."""
    return [str(t) for t in tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))]
