"""Chat templates: conversations rendered as text, with the spans of their answers."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError, Fault
from peftkit.text.conversations import Conversation, assistant_message, user_message
from peftkit.text.messages import Message, is_answer, is_trained_on, message_text
from peftkit.text.special_tokens import escape_special_tokens, unescape_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{{ begin }}{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content }}{{ eos_token }}\n\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% else %}Q: {{ message.content }}\nA:{% endif %}{% endfor %}"
)
"""For base models, used only with `template: plain`."""
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation, with the character spans of its answers."""

    text: str
    spans: tuple[tuple[int, int], ...]


def read_template(template: str) -> str:
    """Return the value of the setting `template`: 'plain', a template's text, or the text of a
    file.

    Raises `ValueError` if it is neither a template nor an existing file.
    """
    if template == "plain" or "{{" in template or "{%" in template:
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise ValueError(
            f"is neither an existing file nor a template (got {template!r}) - give a Jinja file, "
            "its text, or 'plain' (Q: ... A: ...)"
        )
    return path.read_text(encoding="utf-8")


class ChatTemplate:
    """A tokenizer's chat template, or the one given instead."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", given: str | None) -> None:
        template = PLAIN_TEMPLATE if given == "plain" else given or tokenizer.chat_template
        named = template if isinstance(template, dict) else {"default": template}
        if not isinstance(named.get("default"), str):
            what = (
                "the model's tokenizer has none - choose an instruction-tuned model, name a Jinja "
                "file, or set task.template=plain (Q: ... A: ...)"
            )
            raise DataError("the model has no chat template:", [template_fault(what)])
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.text, self.tokenizer = str(named["default"]), tokenizer
        self.text_with_tools = str(named.get("tool_use", self.text))
        self.variables: dict[str, Any] = {
            **tokenizer.special_tokens_map,
            "begin": tokenizer.bos_token if begins else "",
        }

    @property
    def portable_text(self) -> str:
        """The template for `apply_chat_template`, which has no variable `begin`."""
        begin = "{{ bos_token }}" if self.variables["begin"] else ""
        return self.text.replace("{{ begin }}", begin)

    @cached_property
    def end_id(self) -> int | None:
        """The id of the token with which the template ends an answer; None if there is none."""
        *_, last = self.render_answers(Conversation([user_message("a"), assistant_message("b")]))
        upto = last.text[: last.spans[-1][1]]
        ids = self.tokenizer(upto, add_special_tokens=False)["input_ids"]
        return int(ids[-1]) if ids and ids[-1] in added_token_ids(self.tokenizer) else None

    @cached_property
    def accepts_parts(self) -> bool:
        """Whether the template renders the texts of a content given as a list of parts."""
        parts = [{"type": "text", "text": text} for text in ("first", "second")]
        shown = self._tried([{"role": "user", "content": parts}])
        return "first" in shown and "second" in shown and not re.search("""['"]text['"]""", shown)

    @cached_property
    def needs_text_arguments(self) -> bool:
        """Whether the template prints tool call arguments as they are, so they must be JSON
        text."""
        shown, text = (
            self._tried(tool_call_example(each)) for each in ({"place": "here"}, "written")
        )
        return (not shown or "{'place'" in shown) and "written" in text

    def stop_ids(self) -> list[int]:
        """Return the ids that end an answer: the tokenizer's own, and the template's."""
        ends = {self.end_id, self.tokenizer.eos_token_id}
        return sorted(int(i) for i in ends if i is not None)

    def render(self, talk: Conversation, asks: bool = False) -> str:
        """Return the conversation as text with special tokens in messages escaped; with `asks`, it
        ends where an answer begins.

        Raises `DataError` if the template refuses the conversation, as some do for two consecutive
        questions.
        """
        return self._rendered(talk, add_generation_prompt=asks)[0]

    def render_answers(self, talk: Conversation) -> Iterator[RenderedChat]:
        """Yield the conversation with the spans of the answers to train on; as one text, or as one
        text per answer if the template renders earlier answers differently (without their
        reasoning).

        Raises `DataError` if the text before an answer differs from the prompt used to generate it.
        """
        find = self._marked if GENERATION_BLOCK.search(self._text(talk.tools)) else self._turns
        turns = list(find(talk))
        whole = turns[-1].text
        if all(whole.startswith(turn.text) for turn in turns):
            yield RenderedChat(whole, tuple(span for turn in turns for span in turn.spans))
        else:
            yield from turns

    def _marked(self, talk: Conversation) -> Iterator[RenderedChat]:
        """Yield the text up to the end of each answer, with the spans that the template marks as
        generated, extended by the end token that follows a mark."""
        earlier = 0
        for index, message in enumerate(talk.messages):
            if not is_answer(message):
                continue
            text, marks = self._rendered(talk.first(index + 1), return_assistant_tokens_mask=True)
            spans, earlier = [(int(a), int(b)) for a, b in marks[earlier:]], len(marks)
            if not is_trained_on(message):
                continue
            if not spans:
                what = "marks no part of an answer with {% generation %} - mark the whole answer"
                raise DataError("the chat template cannot be used:", [template_fault(what)])
            end = max(spans[-1][1], len(text.rstrip()))
            yield RenderedChat(text[:end], (*spans[:-1], (spans[-1][0], end)))

    def _turns(self, talk: Conversation) -> Iterator[RenderedChat]:
        """Yield the text up to the end of each answer, with the span of the answer."""
        for index, message in enumerate(talk.messages):
            if is_trained_on(message):
                yield self._turn(talk, index)

    def _turn(self, talk: Conversation, index: int) -> RenderedChat:
        before, text = self.render(talk.first(index), asks=True), self.render(talk.first(index + 1))
        if not text.startswith(before):
            what = (
                "renders a prompt differently from the same text before an answer, so the answer "
                "cannot be found - mark answers with {% generation %} ... {% endgeneration %}"
            )
            raise DataError("the chat template cannot be used:", [template_fault(what)])
        return RenderedChat(text, ((len(before), max(len(before), len(text.rstrip()))),))

    def _rendered(self, talk: Conversation, **how: Any) -> tuple[str, Any]:
        """Return the text and its marks, with special tokens in messages escaped."""
        messages, tools = list(map(self._given, talk.messages)), talk.tools
        safe = [escape_texts(self.tokenizer, each) for each in (messages, tools)]
        text, marks = self._written(*safe, **how)
        if safe != [messages, tools]:
            plain, _ = self._written(messages, tools, **how)
            if unescape_special_tokens(self.tokenizer, text) != plain:
                what = "acts on special tokens inside a message - remove them from the row"
                raise DataError("the chat template:", [template_fault(what)])
        return text, marks

    def _given(self, message: Message) -> Message:
        """Return a message in the form that the template accepts."""
        given = {key: value for key, value in message.items() if key != "train"}
        if not isinstance(message["content"], str) and not self.accepts_parts:
            given["content"] = message_text(message)
        if "tool_calls" in given and self.needs_text_arguments:
            given["tool_calls"] = list(map(arguments_to_text, given["tool_calls"]))
        return given

    def _tried(self, messages: list[Message]) -> str:
        """Return the rendered text, or an empty one if the template refuses."""
        try:
            return self._written(messages, None)[0]
        except DataError:
            return ""

    def _written(self, messages: list[Message], tools: Any, **how: Any) -> tuple[str, Any]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        # a template fails on unexpected values with errors of Python
        failures = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
        try:
            found: Any = render_jinja_template(
                [messages], tools, chat_template=self._text(tools), **how, **self.variables
            )
        except failures as error:
            speakers = ", ".join(m["role"] for m in messages)
            what = f"refuses a conversation of {speakers}: {error} - fix the rows, or set another"
            raise DataError("the chat template:", [template_fault(f"{what} template")]) from None
        texts, marks = found
        return texts[0], marks[0] if marks else ()

    def _text(self, tools: list[dict[str, Any]] | None) -> str:
        """Return the template for a conversation with these tools."""
        return self.text_with_tools if tools else self.text


def tool_call_example(arguments: Any) -> list[Message]:
    """Return a conversation with a tool call."""
    function = {"name": "look", "arguments": arguments}
    call = {"type": "function", "id": "call00000", "function": function}
    return [user_message("a"), {**assistant_message(""), "tool_calls": [call]}]


def arguments_to_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as JSON text."""
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def escape_texts(tokenizer: "PreTrainedTokenizerBase", value: Any) -> Any:
    """Return messages or tools with the special tokens in all their texts escaped."""
    if isinstance(value, str):
        return escape_special_tokens(tokenizer, value)
    if isinstance(value, Mapping):
        return {key: escape_texts(tokenizer, inner) for key, inner in value.items()}
    return [escape_texts(tokenizer, each) for each in value] if isinstance(value, list) else value


def template_fault(what: str) -> Fault:
    """Return a fault of the chat template."""
    return Fault("task.template", what)


def special_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids of all special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def added_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids of all added tokens, special or not, except white space."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    written = {i for i, token in added.items() if not token.content.isspace()}
    return written | special_token_ids(tokenizer)
