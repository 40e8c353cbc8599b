"""Chat templates: conversations as the text a model was made for, and where its answers stand."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError, Fault
from peftkit.text.conversations import Conversation, assistant, user
from peftkit.text.messages import Message, is_answer, is_learned, text_of
from peftkit.text.special_tokens import protect, restored

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
        named = said if isinstance(said, dict) else {"default": said}
        if not isinstance(named.get("default"), str):
            what = (
                "the model's tokenizer has none, so how a conversation is written is not known - "
                "choose an instruction-tuned model, name a Jinja file, or say task.template=plain "
                "(Q: ... A: ...)"
            )
            raise DataError("the model has no chat template:", [fault(what)])
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.text, self.tokenizer = str(named["default"]), tokenizer
        self.text_with_tools = str(named.get("tool_use", self.text))
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
        *_, last = self.rendered(Conversation([user("a"), assistant("b")]))
        upto = last.text[: last.spans[-1][1]]
        ids = self.tokenizer(upto, add_special_tokens=False)["input_ids"]
        return int(ids[-1]) if ids and ids[-1] in added_ids(self.tokenizer) else None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it shows the texts of a content in parts, and not how they are held."""
        parts = [{"type": "text", "text": text} for text in ("first", "second")]
        shown = self._tried([{"role": "user", "content": parts}])
        return "first" in shown and "second" in shown and not re.search("""['"]text['"]""", shown)

    @cached_property
    def takes_text_arguments(self) -> bool:
        """Whether it writes the arguments of a tool's call as they are, JSON text then."""
        shown, text = (self._tried(calling(each)) for each in ({"place": "here"}, "written"))
        return (not shown or "{'place'" in shown) and "written" in text

    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's own, and what the template puts there."""
        ends = {self.end_id, self.tokenizer.eos_token_id}
        return sorted(int(i) for i in ends if i is not None)

    def render(self, talk: Conversation, asks: bool = False) -> str:
        """The conversation as text, special tokens in what was said protected; with `asks`, up to
        where an answer begins.

        Raises `DataError` where the template refuses it, as some do two questions in a row.
        """
        return self._rendered(talk, add_generation_prompt=asks)[0]

    def rendered(self, talk: Conversation) -> Iterator[Rendered]:
        """The conversation with the answers found that are to be learned; one text, or one for each
        answer where a template writes earlier answers another way than the last (as those that
        forget thoughts).

        Raises `DataError` where what is learned would not be what is asked for later.
        """
        find = self._marked if MARKS.search(self._text(talk.tools)) else self._turns
        turns = list(find(talk))
        whole = turns[-1].text
        if all(whole.startswith(turn.text) for turn in turns):
            yield Rendered(whole, tuple(span for turn in turns for span in turn.spans))
        else:
            yield from turns

    def _marked(self, talk: Conversation) -> Iterator[Rendered]:
        """The text up to the end of each answer, and what the template marks in it as said; the end
        that it writes behind its mark is said too."""
        earlier = 0
        for index, message in enumerate(talk.messages):
            if not is_answer(message):
                continue
            text, marks = self._rendered(talk.upto(index + 1), return_assistant_tokens_mask=True)
            spans, earlier = [(int(a), int(b)) for a, b in marks[earlier:]], len(marks)
            if not is_learned(message):
                continue
            if not spans:
                what = "marks no part of an answer by {% generation %} - mark all that is said"
                raise DataError("the chat template cannot be used:", [fault(what)])
            end = max(spans[-1][1], len(text.rstrip()))
            yield Rendered(text[:end], (*spans[:-1], (spans[-1][0], end)))

    def _turns(self, talk: Conversation) -> Iterator[Rendered]:
        """The text up to the end of each answer, and where in it the answer stands."""
        for index, message in enumerate(talk.messages):
            if is_learned(message):
                yield self._turn(talk, index)

    def _turn(self, talk: Conversation, index: int) -> Rendered:
        before, text = self.render(talk.upto(index), asks=True), self.render(talk.upto(index + 1))
        if not text.startswith(before):
            what = (
                "writes an answer differently from how it asks for one, so its place cannot be "
                "found - mark answers in it by {% generation %} ... {% endgeneration %}"
            )
            raise DataError("the chat template cannot be used:", [fault(what)])
        return Rendered(text, ((len(before), max(len(before), len(text.rstrip()))),))

    def _rendered(self, talk: Conversation, **how: Any) -> tuple[str, Any]:
        """The text and its marks, special tokens of what was said protected."""
        messages, tools = list(map(self._given, talk.messages)), talk.tools
        safe = [protected(self.tokenizer, each) for each in (messages, tools)]
        text, marks = self._written(*safe, **how)
        if safe != [messages, tools]:
            plain, _ = self._written(messages, tools, **how)
            if restored(self.tokenizer, text) != plain:
                what = "reads special tokens in what was said as its own - take them out of the row"
                raise DataError("the chat template:", [fault(what)])
        return text, marks

    def _given(self, message: Message) -> Message:
        """A message as the template takes it."""
        given = {key: value for key, value in message.items() if key != "train"}
        if not isinstance(message["content"], str) and not self.takes_parts:
            given["content"] = text_of(message)
        if "tool_calls" in given and self.takes_text_arguments:
            given["tool_calls"] = list(map(with_text_arguments, given["tool_calls"]))
        return given

    def _tried(self, messages: list[Message]) -> str:
        """What the template writes; nothing where it refuses."""
        try:
            return self._written(messages, None)[0]
        except DataError:
            return ""

    def _written(self, messages: list[Message], tools: Any, **how: Any) -> tuple[str, Any]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        # what a template does to a value that it does not expect fails as Python does
        failures = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
        try:
            found: Any = render_jinja_template(
                [messages], tools, chat_template=self._text(tools), **how, **self.variables
            )
        except failures as error:
            speakers = ", ".join(m["role"] for m in messages)
            what = f"refuses a conversation of {speakers}: {error} - mend the rows, or give another"
            raise DataError("the chat template:", [fault(f"{what} template")]) from None
        texts, marks = found
        return texts[0], marks[0] if marks else ()

    def _text(self, tools: list[dict[str, Any]] | None) -> str:
        """The template for a conversation with such tools."""
        return self.text_with_tools if tools else self.text


def calling(arguments: Any) -> list[Message]:
    """A conversation with a call of a tool."""
    function = {"name": "look", "arguments": arguments}
    call = {"type": "function", "id": "call00000", "function": function}
    return [user("a"), {**assistant(""), "tool_calls": [call]}]


def with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are JSON text."""
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def protected(tokenizer: "PreTrainedTokenizerBase", value: Any) -> Any:
    """Messages or tools with all their texts protected from being read as special tokens."""
    if isinstance(value, str):
        return protect(tokenizer, value)
    if isinstance(value, Mapping):
        return {key: protected(tokenizer, inner) for key, inner in value.items()}
    return [protected(tokenizer, each) for each in value] if isinstance(value, list) else value


def fault(what: str) -> Fault:
    """A fault of the chat template."""
    return Fault("task.template", what)


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of the tokens that stand for no text, ends of turns among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def added_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of the tokens that are found whole in a text, special or not; of white space none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    written = {i for i, token in added.items() if not token.content.isspace()}
    return written | special_ids(tokenizer)
