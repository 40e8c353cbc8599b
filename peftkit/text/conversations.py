"""Conversations: rows of the usual formats of instructions as messages with roles and contents."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from peftkit.text.messages import (
    ROLES,
    Message,
    is_answer,
    is_learned,
    listed,
    message_of,
    messages_in,
    text_in,
    text_of,
    tools_in,
)

Row = Mapping[str, Any]


class Conversation(NamedTuple):
    """What was said, and with which tools at hand."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None

    def upto(self, count: int) -> "Conversation":
        """The same with the first messages, so many of them."""
        return self._replace(messages=self.messages[:count])


def from_messages(row: Row) -> list[Message]:
    """`messages`: a list of {role, content}."""
    return messages_in(row["messages"], "messages")


def from_sharegpt(row: Row) -> list[Message]:
    """`conversations`: a list of {from, value}."""
    return messages_in(row["conversations"], "conversations")


def from_completion(row: Row) -> list[Message]:
    """`prompt` and `completion`: texts, or lists of messages."""
    asked, said = row["prompt"], row.get("completion")
    before = messages_in(asked, "prompt") if holds_messages(asked) else [said_in(asked, "prompt")]
    if said is None:
        return before
    if holds_messages(said):
        return [*before, *messages_in(said, "completion")]
    return [*before, assistant(text_in(said, "completion"))]


def from_alpaca(row: Row) -> list[Message]:
    """`instruction`, maybe an `input` below it, and `output`."""
    parts = [text_in(row.get(name), name) for name in ("instruction", "input")]
    asked = user("\n\n".join(part for part in parts if part.strip()))
    return [asked, *answer_in(row, "output")]


def from_question(row: Row) -> list[Message]:
    """`question` and `answer`."""
    return [said_in(row["question"], "question"), *answer_in(row, "answer")]


FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], list[Message]]]] = {
    "messages": (("messages",), from_messages),
    "sharegpt": (("conversations",), from_sharegpt),
    "alpaca": (("instruction", "output"), from_alpaca),
    "prompt_completion": (("prompt", "completion"), from_completion),
    "question_answer": (("question", "answer"), from_question),
}
"""By name: the columns that tell a format, and how its rows become messages."""
COLUMNS = ("prompt", "completion", "messages", "conversations", "instruction", "input", "output",
           "question", "answer", "system", "tools")  # fmt: skip
"""All columns that any of the formats has."""
LISTS = ("messages", "conversations", "completion")
"""Those whose cells may be messages that end in an answer."""


def format_of(columns: Collection[str], asked: bool = False) -> str | None:
    """The first format whose columns are there; with `asked`, but for the answer's; None if none.

    What a prediction is made from lacks the answer.
    """
    for name, (needed, _) in FORMATS.items():
        if set(needed[:1] if asked else needed) <= set(columns):
            return name
    return None


def conversation_of(row: Row, name: str, system: str | None) -> Conversation:
    """The conversation of a row in the format `name`; `system` is the system prompt of rows
    without.

    Raises `MessageError` for what cannot be read.
    """
    messages = FORMATS[name][1](row)
    said = text_in(row.get("system"), "system") or system
    if said and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": said}, *messages]
    return Conversation(messages, tools_in(row.get("tools")))


def upto_last_answer(talk: Conversation) -> Conversation:
    """A conversation without what follows the last answer that is learned; one without answers as
    it is."""
    answers = [index for index, message in enumerate(talk.messages) if is_learned(message)]
    return talk.upto(answers[-1] + 1) if answers else talk


def asked(talk: Conversation) -> Conversation:
    """A conversation without its last answer."""
    last = talk.messages[-1:]
    return talk.upto(-1) if last and is_answer(last[0]) else talk


def without_unanswered(cell: Any, column: str) -> Any:
    """A cell's messages to the last answer; what is no list of them, or has none, as it is."""
    if not holds_messages(cell) and column == "completion":
        return cell
    said = listed(cell, column)
    answers = [place for place, each in enumerate(said) if is_learned(message_of(each))]
    return said[: answers[-1] + 1] if answers else cell


def holds_messages(cell: Any) -> bool:
    """Whether a cell that may be a text is messages."""
    return isinstance(cell, (list, tuple, Mapping))


def user(content: str | None) -> Message:
    """What is asked."""
    return {"role": "user", "content": content or ""}


def assistant(content: str) -> Message:
    """What is answered."""
    return {"role": "assistant", "content": content}


def said_in(cell: Any, column: str) -> Message:
    """A cell's text as a question."""
    return user(text_in(cell, column))


def answer_in(row: Row, column: str) -> list[Message]:
    """The answer in a column, where the row has one."""
    cell = row.get(column)
    return [] if cell is None else [assistant(text_in(cell, column))]


def faults_in(messages: Sequence[Message]) -> str | None:
    """Why nothing can be learned from a conversation; None if something can."""
    if strange := {m["role"] for m in messages} - set(ROLES.values()):
        return f"a speaker is called {sorted(strange)[0]!r}, not user, assistant, system or tool"
    answers = list(filter(is_answer, messages))
    if not answers:
        return "nobody answers: there is no turn of the assistant"
    if not any(map(is_learned, answers)):
        return "no answer is to be learned: weight is 0, or train is false, in each"
    if is_answer(messages[0]):
        return "begins with an answer to nothing"
    if not all(text_of(m).strip() or "tool_calls" in m for m in answers):
        return "an answer is empty"
    if not all(text_of(m).strip() for m in messages if m["role"] == "user"):
        return "a question is empty"
    return None
