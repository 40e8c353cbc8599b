"""Message fields other than content, and whether a chat template renders them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from peftkit.errors import DataError, Fault
from peftkit.text.chat_templates import ChatTemplate, escape_texts
from peftkit.text.conversations import Conversation
from peftkit.text.messages import Message, is_answer, message_text

REQUIRED_FIELDS = (
    "tools", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal",
    "images", "image", "audio", "videos", "video",
)  # fmt: skip
"""Fields that a model must see or learn. Others, such as ids and dates, may be ignored."""
CONTENT_FIELDS = {"assistant": "content beside tool_calls", "tool": "content of a tool's message"}
"""Contents that some templates leave out, by role."""


@dataclass
class FieldReport:
    """Problems in the conversations of a split: each with the names of its rows."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    unsaid: dict[str, list[str]] = field(default_factory=dict)
    """Fields that the template ignores and a model need not see."""


class HiddenField(NamedTuple):
    """A field that the template does not render."""

    key: str
    told: bool
    """Whether a model must see it."""

    @property
    def fault(self) -> str:
        """What is wrong, and how to fix it."""
        what = f"{self.key}: the chat template does not render it, so the model would never see it"
        return f"{what} - remove it, or set a task.template that renders it"


def check_fields(talks: Iterable[tuple[str, Conversation]], template: ChatTemplate) -> FieldReport:
    """Return what the template does not render of named conversations."""
    checker, found = FieldChecker(template), FieldReport()
    for name, talk in talks:
        try:
            unshown = checker.find_hidden(talk)
        except DataError as error:
            unshown = []
            found.faults.setdefault(f"the chat template {error.faults[0].what}", []).append(name)
        for each in unshown:
            kept, what = (found.faults, each.fault) if each.told else (found.unsaid, each.key)
            kept.setdefault(what, []).append(name)
        if within := checker.find_end_token(talk):
            found.faults.setdefault(within, []).append(name)
    return found


class FieldChecker:
    """Finds what a template does not render, checking each kind of message once."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.known: dict[tuple[Any, ...], bool] = {}

    def find_hidden(self, talk: Conversation) -> list[HiddenField]:
        """Return the fields of the conversation that the template does not render.

        Raises `DataError` if the template refuses the conversation.
        """
        tokenizer, found = self.template.tokenizer, list[str]()
        keys = list(find_extra_fields(talk))
        if keys or talk.tools or escape_texts(tokenizer, talk.messages) != talk.messages:
            self.template.render(talk)
        if talk.tools and not self._shows(talk, talk._replace(tools=None), ("tools",)):
            found.append("tools")
        for index, key in keys:
            message = talk.messages[index]
            kind = (message["role"], *sorted(message), key)
            # as the last message: some templates drop the reasoning of earlier answers
            shown = talk.first(index + 1) if is_answer(message) else talk
            if not self._shows(shown, remove_field(shown, index, key), kind):
                found.append(key)
        told = (*REQUIRED_FIELDS, *CONTENT_FIELDS.values())
        return [HiddenField(key, key in told) for key in dict.fromkeys(found)]

    def find_end_token(self, talk: Conversation) -> str | None:
        """Return what is wrong if a text contains the end-of-turn token and the tokenizer, for
        which it is not a special token, would end the turn there; else None."""
        end = self.template.end_id
        token = None if end is None else self.template.tokenizer.added_tokens_decoder.get(end)
        if token is None or token.special:
            return None
        if not any(token.content in text for text in find_texts([*talk.messages, talk.tools])):
            return None
        what = f"a text contains {token.content!r}, which ends a turn wherever it occurs"
        return f"{what} - remove it, or make it a special token of the tokenizer"

    def _shows(self, talk: Conversation, less: Conversation, kind: tuple[Any, ...]) -> bool:
        if kind not in self.known:
            whole = self.template.render(talk)
            try:
                self.known[kind] = self.template.render(less) != whole
            except DataError:  # the template requires the field
                self.known[kind] = True
        return self.known[kind]


def row_faults(split: str, num_rows: int, wrong: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Return a fault for each problem, with the names of its rows in a split."""
    return [
        Fault(
            f"{split}, {len(names)} of {num_rows} rows ({', '.join(names[:3])})",
            what if " - " in what else f"{what} - fix or remove the rows",
        )
        for what, names in wrong.items()
    ]


def find_extra_fields(talk: Conversation) -> Iterator[tuple[int, str]]:
    """Yield index and key of message fields other than role and content, and the contents that
    accompany tool calls or tool results."""
    for index, message in enumerate(talk.messages):
        for key in message:
            if key not in ("role", "content", "train"):
                yield index, key
        called = is_answer(message) and "tool_calls" in message
        if (called or message["role"] == "tool") and message_text(message).strip():
            yield index, CONTENT_FIELDS[message["role"]]


def remove_field(talk: Conversation, index: int, key: str) -> Conversation:
    """Return the conversation without one field of one message."""
    messages = list(talk.messages)
    message: Message = dict(messages[index])
    if key in CONTENT_FIELDS.values():
        message["content"] = ""
    else:
        del message[key]
    messages[index] = message
    return talk._replace(messages=messages)


def find_texts(value: Any) -> Iterator[str]:
    """Yield all strings in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from find_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from find_texts(inner)
