"""Dataset rows in the common instruction formats, as conversations."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from peftkit.text.messages import (
    ROLES,
    Message,
    is_answer,
    is_trained_on,
    message_text,
    parse_items,
    parse_message,
    parse_messages,
    parse_tools,
    read_text,
)

Row = Mapping[str, Any]


class Conversation(NamedTuple):
    """Messages, and the tools available to the assistant."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None

    def first(self, count: int) -> "Conversation":
        """Return the conversation with its first `count` messages."""
        return self._replace(messages=self.messages[:count])


def from_messages(row: Row) -> list[Message]:
    """`messages`: a list of {role, content}."""
    return parse_messages(row["messages"], "messages")


def from_sharegpt(row: Row) -> list[Message]:
    """`conversations`: a list of {from, value}."""
    return parse_messages(row["conversations"], "conversations")


def from_completion(row: Row) -> list[Message]:
    """`prompt` and `completion`: texts, or lists of messages."""
    prompt, completion = row["prompt"], row.get("completion")
    before = (
        parse_messages(prompt, "prompt")
        if holds_messages(prompt)
        else [read_question(prompt, "prompt")]
    )
    if completion is None:
        return before
    if holds_messages(completion):
        return [*before, *parse_messages(completion, "completion")]
    return [*before, assistant_message(read_text(completion, "completion"))]


def from_alpaca(row: Row) -> list[Message]:
    """`instruction`, maybe an `input` below it, and `output`."""
    parts = [read_text(row.get(name), name) for name in ("instruction", "input")]
    question = user_message("\n\n".join(part for part in parts if part.strip()))
    return [question, *read_answer(row, "output")]


def from_question(row: Row) -> list[Message]:
    """`question` and `answer`."""
    return [read_question(row["question"], "question"), *read_answer(row, "answer")]


FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], list[Message]]]] = {
    "messages": (("messages",), from_messages),
    "sharegpt": (("conversations",), from_sharegpt),
    "alpaca": (("instruction", "output"), from_alpaca),
    "prompt_completion": (("prompt", "completion"), from_completion),
    "question_answer": (("question", "answer"), from_question),
}
"""By name: the columns that identify a format, and how its rows become messages."""
COLUMNS = ("prompt", "completion", "messages", "conversations", "instruction", "input", "output",
           "question", "answer", "system", "tools")  # fmt: skip
"""All columns of any format."""
MESSAGE_COLUMNS = ("messages", "conversations", "completion")
"""Columns whose cells may be message lists that end with an answer."""


def detect_format(columns: Collection[str], unanswered: bool = False) -> str | None:
    """Return the first format whose columns are present, or None.

    With `unanswered`, the answer's column may be missing, as in rows to predict.
    """
    for name, (needed, _) in FORMATS.items():
        if set(needed[:1] if unanswered else needed) <= set(columns):
            return name
    return None


def to_conversation(row: Row, name: str, system: str | None) -> Conversation:
    """Return the conversation of a row in the format `name`; rows without a system prompt get
    `system`.

    Raises `MessageError` for a row that cannot be read.
    """
    messages = FORMATS[name][1](row)
    system_text = read_text(row.get("system"), "system") or system
    if system_text and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system_text}, *messages]
    return Conversation(messages, parse_tools(row.get("tools")))


def trim_to_last_answer(talk: Conversation) -> Conversation:
    """Remove the messages after the last answer to train on, if there is one."""
    answers = [index for index, message in enumerate(talk.messages) if is_trained_on(message)]
    return talk.first(answers[-1] + 1) if answers else talk


def remove_last_answer(talk: Conversation) -> Conversation:
    """Remove the last message if it is an answer."""
    last = talk.messages[-1:]
    return talk.first(-1) if last and is_answer(last[0]) else talk


def trim_unanswered(cell: Any, column: str) -> Any:
    """Remove a cell's messages after the last answer; other cells are returned unchanged."""
    if not holds_messages(cell) and column == "completion":
        return cell
    items = parse_items(cell, column)
    answers = [place for place, each in enumerate(items) if is_trained_on(parse_message(each))]
    return items[: answers[-1] + 1] if answers else cell


def holds_messages(cell: Any) -> bool:
    """Return whether a cell that may be a text is a list of messages."""
    return isinstance(cell, (list, tuple, Mapping))


def user_message(content: str | None) -> Message:
    """Return a user message."""
    return {"role": "user", "content": content or ""}


def assistant_message(content: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": content}


def read_question(cell: Any, column: str) -> Message:
    """Return a cell's text as a user message."""
    return user_message(read_text(cell, column))


def read_answer(row: Row, column: str) -> list[Message]:
    """Return the answer in a column as a list of one message, empty if the row has none."""
    cell = row.get(column)
    return [] if cell is None else [assistant_message(read_text(cell, column))]


def find_fault(messages: Sequence[Message]) -> str | None:
    """Return why a conversation has nothing to train on, or None."""
    if strange := {m["role"] for m in messages} - set(ROLES.values()):
        return f"a role is {sorted(strange)[0]!r}, not user, assistant, system or tool"
    answers = list(filter(is_answer, messages))
    if not answers:
        return "there is no message of the assistant"
    if not any(map(is_trained_on, answers)):
        return "there is no answer to train on: weight is 0, or train is false, in each"
    if is_answer(messages[0]):
        return "begins with an answer"
    if not all(message_text(m).strip() or "tool_calls" in m for m in answers):
        return "an answer is empty"
    if not all(message_text(m).strip() for m in messages if m["role"] == "user"):
        return "a question is empty"
    return None
