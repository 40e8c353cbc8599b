"""Conversations: rows of the usual formats of instructions as messages with roles and contents."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Message = dict[str, str]
"""`role` (system, user, assistant, tool) and `content`."""
Row = Mapping[str, Any]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""What the speakers are called in data sets, and what templates call them."""


def from_messages(row: Row) -> list[Message]:
    """`messages`: a list of {role, content}."""
    return list(map(message_of, row["messages"] or []))


def from_sharegpt(row: Row) -> list[Message]:
    """`conversations`: a list of {from, value}."""
    return list(map(message_of, row["conversations"] or []))


def from_completion(row: Row) -> list[Message]:
    """`prompt` and `completion`: texts, or lists of messages."""
    asked, said = row["prompt"], row.get("completion")
    before = [user(asked)] if isinstance(asked, str) else list(map(message_of, asked or []))
    if said is None:
        return before
    return [
        *before,
        *([assistant(said)] if isinstance(said, str) else list(map(message_of, said))),
    ]


def from_alpaca(row: Row) -> list[Message]:
    """`instruction`, maybe an `input` below it, and `output`."""
    parts = [row["instruction"], row.get("input")]
    said = row.get("output")
    asked = user("\n\n".join(part for part in parts if part and part.strip()))
    return [asked] if said is None else [asked, assistant(said)]


def from_question(row: Row) -> list[Message]:
    """`question` and `answer`."""
    said = row.get("answer")
    return [user(row["question"])] if said is None else [user(row["question"]), assistant(said)]


FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], list[Message]]]] = {
    "messages": (("messages",), from_messages),
    "sharegpt": (("conversations",), from_sharegpt),
    "alpaca": (("instruction", "output"), from_alpaca),
    "prompt_completion": (("prompt", "completion"), from_completion),
    "question_answer": (("question", "answer"), from_question),
}
"""By name: the columns that tell a format, and how its rows become messages."""
COLUMNS = ("prompt", "completion", "messages", "conversations", "instruction", "input", "output",
           "question", "answer", "system")  # fmt: skip
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


def messages_of(row: Row, name: str, system: str | None) -> list[Message]:
    """The messages of a row in the format `name`; `system` is the system prompt of rows without."""
    messages = FORMATS[name][1](row)
    said = row.get("system") or system
    if said and not (messages and messages[0]["role"] == "system"):
        return [{"role": "system", "content": said}, *messages]
    return messages


def message_of(said: Mapping[str, Any]) -> Message:
    """One message of any spelling; an unknown speaker keeps its name."""
    role = str(said.get("role") or said.get("from") or "")
    content = said.get("content", said.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts of several kinds
        content = "".join(str(part.get("text") or "") for part in content)
    return {"role": ROLES.get(role.lower(), role), "content": content or ""}


def without_unanswered(cell: Any) -> Any:
    """A cell's messages to the last answer; what is no list of them, or has none, as it is."""
    if not isinstance(cell, list):
        return cell
    answers = [i for i, said in enumerate(cell) if message_of(said)["role"] == "assistant"]
    return cell[: answers[-1] + 1] if answers else cell


def user(content: str | None) -> Message:
    """What is asked."""
    return {"role": "user", "content": content or ""}


def assistant(content: str) -> Message:
    """What is answered."""
    return {"role": "assistant", "content": content}


def faults_in(messages: Sequence[Message]) -> str | None:
    """Why nothing can be learned from a conversation; None if something can."""
    if strange := {m["role"] for m in messages} - set(ROLES.values()):
        return f"a speaker is called {sorted(strange)[0]!r}, not user, assistant, system or tool"
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        return "nobody answers: there is no turn of the assistant"
    if messages[0]["role"] == "assistant":
        return "begins with an answer to nothing"
    if not all(m["content"].strip() for m in answers):
        return "an answer is empty"
    if not all(m["content"].strip() for m in messages if m["role"] == "user"):
        return "a question is empty"
    return None
