"""Chat templates: conversations as the text a model was made for, and where its answers stand."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.conversations import Message
from peftkit.errors import DataError, Fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{{ begin }}{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content }}{{ eos_token }}\n\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% else %}Q: {{ message.content }}\nA:{% endif %}{% endfor %}"
)
"""For base models, only where it is asked for by `template: plain`."""
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the characters that are the assistant's."""

    text: str
    spans: tuple[tuple[int, int], ...]


def template_text(said: str) -> str:
    """What the setting `template` means: 'plain', a template's own text, or a file's.

    Raises `ValueError` where there is neither a file nor a template.
    """
    if said == "plain" or "{{" in said or "{%" in said:
        return said
    path = Path(said).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no such file, and it is no template (got {said!r}) - give a Jinja file, its "
            "text, or 'plain' (Q: ... A: ...)"
        )
    return path.read_text(encoding="utf-8")


class Template:
    """A tokenizer's chat template, or the one that is given in its place."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", given: str | None) -> None:
        said = PLAIN if given == "plain" else given or tokenizer.chat_template
        if not isinstance(said, str):
            what = (
                "the model's tokenizer has none, so how a conversation is written is not known - "
                "choose an instruction-tuned model, name a Jinja file, or say task.template=plain "
                "(Q: ... A: ...)"
            )
            raise DataError("the model has no chat template:", [_fault(what)])
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.text, self.tokenizer = said, tokenizer
        self.variables: dict[str, Any] = {
            **tokenizer.special_tokens_map,
            "begin": tokenizer.bos_token if begins else "",
        }

    @property
    def portable(self) -> str:
        """The template as `apply_chat_template` renders it, which knows no `begin`."""
        begin = "{{ bos_token }}" if self.variables["begin"] else ""
        return self.text.replace("{{ begin }}", begin)

    @cached_property
    def end_id(self) -> int | None:
        """The token that the template itself writes as the end of an answer, if it does."""
        probe: list[Message] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
        *_, last = self.rendered(probe)
        upto = last.text[: last.spans[-1][1]]
        ids = self.tokenizer(upto, add_special_tokens=False)["input_ids"]
        return int(ids[-1]) if ids and ids[-1] in added_ids(self.tokenizer) else None

    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's own, and what the template puts there."""
        ends = {self.end_id, self.tokenizer.eos_token_id}
        return sorted(int(i) for i in ends if i is not None)

    def render(self, messages: Sequence[Message], asks: bool = False) -> str:
        """The conversation as text; with `asks`, up to where an answer begins.

        Raises `DataError` where the template refuses it, as some do two questions in a row.
        """
        return self._rendered(messages, add_generation_prompt=asks)[0]

    def rendered(self, messages: Sequence[Message]) -> Iterator[Rendered]:
        """The conversation with its answers found; one text, or one for each answer where a
        template writes earlier answers another way than the last (as those that forget thoughts).

        Raises `DataError` where what is learned would not be what is asked for later.
        """
        find = self._marked if MARKS.search(self.text) else self._turns
        turns = list(find(messages, [i for i, m in enumerate(messages) if is_answer(m)]))
        whole = turns[-1].text
        if all(whole.startswith(turn.text) for turn in turns):
            yield Rendered(whole, tuple(span for turn in turns for span in turn.spans))
        else:
            yield from turns

    def _marked(self, messages: Sequence[Message], answers: Sequence[int]) -> Iterator[Rendered]:
        """The text up to the end of each answer, and what the template marks in it as said; the end
        that it writes behind its mark is said too."""
        earlier = 0
        for index in answers:
            text, marks = self._rendered(messages[: index + 1], return_assistant_tokens_mask=True)
            spans, earlier = [(int(a), int(b)) for a, b in marks[earlier:]], len(marks)
            if not spans:
                what = "marks no part of an answer by {% generation %} - mark all that is said"
                raise DataError("the chat template cannot be used:", [_fault(what)])
            end = max(spans[-1][1], len(text.rstrip()))
            yield Rendered(text[:end], (*spans[:-1], (spans[-1][0], end)))

    def _turns(self, messages: Sequence[Message], answers: Sequence[int]) -> Iterator[Rendered]:
        """The text up to the end of each answer, and where in it the answer stands."""
        for index in answers:
            text, span = self._turn(messages, index)
            yield Rendered(text, (span,))

    def _turn(self, messages: Sequence[Message], index: int) -> tuple[str, tuple[int, int]]:
        """The text up to the end of an answer, and where in it the answer stands."""
        before, text = self.render(messages[:index], asks=True), self.render(messages[: index + 1])
        if not text.startswith(before):
            what = (
                "writes an answer differently from how it asks for one, so its place cannot be "
                "found - mark answers in it by {% generation %} ... {% endgeneration %}"
            )
            raise DataError("the chat template cannot be used:", [_fault(what)])
        return text, (len(before), max(len(before), len(text.rstrip())))

    def _rendered(self, messages: Sequence[Message], **how: Any) -> tuple[str, Any]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            found: Any = render_jinja_template(
                [list(messages)], chat_template=self.text, **how, **self.variables
            )
        except TemplateError as error:
            what = f"refuses {_said(messages)}: {error} - mend the rows, or give another template"
            raise DataError("the chat template:", [_fault(what)]) from None
        texts, marks = found
        return texts[0], marks[0] if marks else ()


def is_answer(message: Message) -> bool:
    """Whether a message is the assistant's."""
    return message["role"] == "assistant"


def _fault(what: str) -> Fault:
    return Fault("task.template", what)


def _said(messages: Sequence[Message]) -> str:
    """Who speaks in a conversation, for a message."""
    return f"a conversation of {', '.join(m['role'] for m in messages)}"


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
    parts = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else [])
    whole = tokenizer(
        [r.text for r in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
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


def size_of(text: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Bytes of the text without special tokens."""
    for token in special_tokens(tokenizer):
        text = text.replace(token, "")
    return len(text.encode("utf-8", "surrogatepass"))


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of the tokens that stand for no text, ends of turns among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def added_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of the tokens that are found whole in a text, special or not; of white space none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    written = {i for i, token in added.items() if not token.content.isspace()}
    return written | special_ids(tokenizer)


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The same tokens as text."""
    return [str(t) for t in tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))]
