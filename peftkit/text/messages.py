"""Chat messages in any common spelling, converted to `role` and `content`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content` (a text or a list of text parts), and other
fields such as `tool_calls`. `train` is False for an answer not to train on."""

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""Roles in datasets, with the role in templates."""
TEXT_PART_TYPES = (None, "text", "input_text", "output_text")
"""Types of content parts that are text."""
MESSAGE_KEYS = ("role", "from", "content", "value", "weight", "train")
"""Keys for role, content, and whether to train on the message."""


class MessageError(ValueError):
    """A row that cannot be read as a conversation: what is wrong, and how to fix it."""

    def __init__(self, what: str, number: int | None = None) -> None:
        super().__init__(what, number)
        self.what, self.number = what, number

    @property
    def place(self) -> str:
        """The number of the message, to be appended to the row's name."""
        return "" if self.number is None else f" message {self.number}"


def parse_messages(cell: Any, column: str) -> list[Message]:
    """Return the messages of a cell: a list, or JSON text of one.

    Raises `MessageError` for anything else.
    """
    found = []
    for number, item in enumerate(parse_items(cell, column), 1):
        try:
            found.append(parse_message(item))
        except MessageError as error:
            raise MessageError(error.what, number) from None
    return found


def parse_items(cell: Any, column: str) -> Sequence[Any]:
    """Return the items of a cell: a list, or JSON text of one."""
    value = parse_json(cell, column) if isinstance(cell, str) and cell.strip() else cell
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise MessageError(f"{column} is {describe_type(value)} - give a list, or JSON text of one")
    return value


def parse_json(text: str, what: str) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text)
    except ValueError as error:
        reason = f"{what} is text that is not JSON ({text[:40]!r}: {error})"
        raise MessageError(f"{reason} - fix it, or give the value itself") from None


def parse_message(item: Any) -> Message:
    """Return a message of any spelling; unknown roles are kept."""
    if not isinstance(item, Mapping):
        what = f"a message is {describe_type(item)} - give an object with role and content"
        raise MessageError(what)
    name = str(item.get("role") or item.get("from") or "")
    role = ROLES.get(name.lower(), name)
    text = item.get("content")
    content = parse_content(item.get("value") if text is None else text)
    more = {
        key: value for key, value in item.items() if key not in MESSAGE_KEYS and not is_blank(value)
    }
    if "tool_calls" in more:
        more["tool_calls"] = list(
            map(parse_tool_call, parse_items(more["tool_calls"], "tool_calls"))
        )
    unlearned = {} if read_train_flag(item, role) else {"train": False}
    return {"role": role, "content": content, **more, **unlearned}


def parse_content(value: Any) -> Any:
    """Return a content as text, or as a list of parts if there are several.

    Raises `MessageError` for parts that are not text, such as images.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return read_text(value, "content")
    texts = list(map(read_part, value))
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def read_part(part: Any) -> str:
    """Return the text of one part of a content."""
    if not isinstance(part, Mapping):
        return read_text(part, "a part of content")
    kind = part.get("type")
    text = part.get("text")
    unnamed = kind is None and text is None
    if unnamed or kind not in TEXT_PART_TYPES or not isinstance(text, (str, type(None))):
        description = f"of type {kind!r}" if kind else f"with the keys {', '.join(map(str, part))}"
        raise MessageError(
            f"content has a part {description}, but only text is supported - remove it"
        )
    return text or ""


def read_text(value: Any, what: str) -> str:
    """Return a cell as text; numbers and booleans as data files write them."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise MessageError(f"{what} is {describe_type(value)} - give a text")


def parse_tool_call(call: Any) -> dict[str, Any]:
    """Return a tool call as templates expect it: a `function` with a name and a mapping of
    arguments, which datasets may store as JSON text."""
    if not isinstance(call, Mapping):
        raise MessageError(f"tool_calls holds {describe_type(call)} - give objects with a function")
    known = {key: value for key, value in call.items() if value is not None}
    if "function" not in known and "name" in known:
        own = ("name", "arguments")
        inner = {key: known.pop(key) for key in own if key in known}
        known = {"type": "function", **known, "function": inner}
    function = known.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError("tool_calls holds a call without a function's name - name it")
    given = function.get("arguments")
    key = "tool_calls.function.arguments"
    if isinstance(given, str) and given.strip():
        given = parse_json(given, key)
    if not isinstance(given or {}, Mapping):
        raise MessageError(f"{key} is {describe_type(given)} - give an object of names and values")
    return {**known, "function": {**function, "arguments": dict(given or {})}}


def parse_tools(cell: Any) -> list[dict[str, Any]] | None:
    """Return the tools of a cell as JSON schemas, or None."""
    found = []
    for item in parse_items(cell, "tools"):
        tool = parse_json(item, "tools") if isinstance(item, str) else item
        if not isinstance(tool, Mapping):
            raise MessageError(
                f"tools holds {describe_type(tool)} - give objects, JSON schemas each"
            )
        found.append(dict(tool))
    return found or None


def read_train_flag(message: Mapping[str, Any], role: str) -> bool:
    """Return whether to train on a message if it is an answer: not with `weight: 0` or `train:
    false`.

    Raises `MessageError` for other values, and for messages of other roles that ask for training.
    """
    known = {key: message[key] for key in ("weight", "train") if not is_missing(message.get(key))}
    for key, value in known.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            wanted = "0 or 1" if key == "weight" else "true or false"
            raise MessageError(f"{key} should be {wanted} (got {value!r}) - fix or remove it")
        if value and role != "assistant":
            what = (
                f"{key} asks to train on a message of the {role}, but only answers are trained on"
            )
            raise MessageError(f"{what} - remove it")
    if len(set(map(bool, known.values()))) > 1:
        raise MessageError("weight and train contradict each other - keep one of them")
    return all(known.values())


def is_missing(value: Any) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or value != value


def is_blank(value: Any) -> bool:
    """Return whether a value is null or an empty text, list or object."""
    return is_missing(value) or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def describe_type(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a text ({value[:40]!r})" if isinstance(value, str) else repr(value)[:40]


def message_text(message: Message) -> str:
    """Return a message's content as one text."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def is_answer(message: Message) -> bool:
    """Return whether a message is the assistant's."""
    return bool(message["role"] == "assistant")


def is_trained_on(message: Message) -> bool:
    """Return whether a message is an answer to train on."""
    return is_answer(message) and message.get("train", True)
