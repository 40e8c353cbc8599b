"""Chat fields: what stands beside the contents of messages, and whether a template shows it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from peftkit.errors import DataError, Fault
from peftkit.text.chat_templates import Template, protected
from peftkit.text.conversations import Conversation
from peftkit.text.messages import Message, is_answer, text_of

TOLD = ("tools", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking",
        "refusal", "images", "image", "audio", "videos", "video")  # fmt: skip
"""What a model must see or learn to say. Other keys, as ids and dates, may be left unsaid."""
CONTENTS = {"assistant": "content beside tool_calls", "tool": "content of a tool's message"}
"""What some templates leave out, by who says it."""


@dataclass
class Examined:
    """What was found in the conversations of a split: names of rows by what there is to say."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    unsaid: dict[str, list[str]] = field(default_factory=dict)
    """By key that the template does not show and a model need not see."""


class Unshown(NamedTuple):
    """A key that the template shows nothing of."""

    key: str
    told: bool
    """Whether a model must see it."""

    @property
    def fault(self) -> str:
        """What is wrong with that, and what to do."""
        what = f"{self.key}: the chat template shows nothing of it, so that the model would never "
        return f"{what}see it - leave it out, or give a task.template that shows it"


def examined(talks: Iterable[tuple[str, Conversation]], template: Template) -> Examined:
    """What the template does not show of conversations that have names."""
    fields, found = Fields(template), Examined()
    for name, talk in talks:
        try:
            unshown = fields.unshown(talk)
        except DataError as error:
            unshown = []
            found.faults.setdefault(f"the chat template {error.faults[0].what}", []).append(name)
        for each in unshown:
            kept, what = (found.faults, each.fault) if each.told else (found.unsaid, each.key)
            kept.setdefault(what, []).append(name)
        if within := fields.end_within(talk):
            found.faults.setdefault(within, []).append(name)
    return found


class Fields:
    """What a template shows of conversations: found once for each kind of message."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.known: dict[tuple[Any, ...], bool] = {}

    def unshown(self, talk: Conversation) -> list[Unshown]:
        """What of the conversation's keys the template does not show.

        Raises `DataError` where it refuses the conversation.
        """
        tokenizer, found = self.template.tokenizer, list[str]()
        keys = list(beside(talk))
        if keys or talk.tools or protected(tokenizer, talk.messages) != talk.messages:
            self.template.render(talk)
        if talk.tools and not self._shows(talk, talk._replace(tools=None), ("tools",)):
            found.append("tools")
        for index, key in keys:
            message = talk.messages[index]
            kind = (message["role"], *sorted(message), key)
            # an answer as it is when it is said: some templates forget earlier thoughts
            shown = talk.upto(index + 1) if is_answer(message) else talk
            if not self._shows(shown, without(shown, index, key), kind):
                found.append(key)
        told = (*TOLD, *CONTENTS.values())
        return [Unshown(key, key in told) for key in dict.fromkeys(found)]

    def end_within(self, talk: Conversation) -> str | None:
        """What is wrong with a conversation that would be read to end within a text: the tokenizer
        finds the end of its turns in any text, for it is no special token."""
        end = self.template.end_id
        token = None if end is None else self.template.tokenizer.added_tokens_decoder.get(end)
        if token is None or token.special:
            return None
        if not any(token.content in text for text in texts_in([*talk.messages, talk.tools])):
            return None
        what = f"a text holds {token.content!r}, which ends a turn wherever it stands"
        return f"{what} - take it out, or make it a special token of the tokenizer"

    def _shows(self, talk: Conversation, less: Conversation, kind: tuple[Any, ...]) -> bool:
        if kind not in self.known:
            whole = self.template.render(talk)
            try:
                self.known[kind] = self.template.render(less) != whole
            except DataError:  # it asks for what was taken away
                self.known[kind] = True
        return self.known[kind]


def faults_of(split: str, num_rows: int, wrong: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Faults from the names of a split's rows by what is wrong with them."""
    return [
        Fault(
            f"{split}, {len(names)} of {num_rows} rows ({', '.join(names[:3])})",
            what if " - " in what else f"{what} - mend or leave out the rows",
        )
        for what, names in wrong.items()
    ]


def beside(talk: Conversation) -> Iterator[tuple[int, str]]:
    """What stands beside the contents of messages, by number and key, and the contents of messages
    about tools."""
    for index, message in enumerate(talk.messages):
        for key in message:
            if key not in ("role", "content", "train"):
                yield index, key
        called = is_answer(message) and "tool_calls" in message
        if (called or message["role"] == "tool") and text_of(message).strip():
            yield index, CONTENTS[message["role"]]


def without(talk: Conversation, index: int, key: str) -> Conversation:
    """The conversation without what a message says in a key."""
    messages = list(talk.messages)
    message: Message = dict(messages[index])
    if key in CONTENTS.values():
        message["content"] = ""
    else:
        del message[key]
    messages[index] = message
    return talk._replace(messages=messages)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
