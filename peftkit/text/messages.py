"""Messages: one turn of a conversation, of any spelling, with all that stands beside its text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""`role` (system, user, assistant, tool) and `content`, a text or several parts that are; beside it
what else was said, as `tool_calls`. `train` is False where an answer is not to be learned."""

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""What the speakers are called in data sets, and what templates call them."""
TEXTS = (None, "text", "input_text", "output_text")
"""What parts of a content are called that are text."""
OWN = ("role", "from", "content", "value", "weight", "train")
"""Keys that say who speaks, what, and whether it is learned."""


class MessageError(ValueError):
    """What in a row cannot be read as a conversation, and what to do."""

    def __init__(self, what: str, number: int | None = None) -> None:
        super().__init__(what, number)
        self.what, self.number = what, number

    @property
    def place(self) -> str:
        """Which message of the row it is, to be put behind the row's name."""
        return "" if self.number is None else f" message {self.number}"


def messages_in(cell: Any, column: str) -> list[Message]:
    """The messages of a cell: a list of them, or the same as JSON text.

    Raises `MessageError` for what is none.
    """
    found = []
    for number, said in enumerate(listed(cell, column), 1):
        try:
            found.append(message_of(said))
        except MessageError as error:
            raise MessageError(error.what, number) from None
    return found


def listed(cell: Any, column: str) -> Sequence[Any]:
    """The items of a cell: a list, or JSON text of one."""
    value = parsed(cell, column) if isinstance(cell, str) and cell.strip() else cell
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise MessageError(f"{column} is {kind_of(value)} - give a list, or JSON text of one")
    return value


def parsed(text: str, what: str) -> Any:
    """What a text says in JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        said = f"{what} is text that is no JSON ({text[:40]!r}: {error})"
        raise MessageError(f"{said} - mend it, or give the value itself") from None


def message_of(said: Any) -> Message:
    """One message of any spelling; an unknown speaker keeps its name."""
    if not isinstance(said, Mapping):
        what = f"a message is {kind_of(said)} - give an object with role and content"
        raise MessageError(what)
    name = str(said.get("role") or said.get("from") or "")
    role = ROLES.get(name.lower(), name)
    text = said.get("content")
    content = content_of(said.get("value") if text is None else text)
    more = {key: value for key, value in said.items() if key not in OWN and not is_nothing(value)}
    if "tool_calls" in more:
        more["tool_calls"] = list(map(call_of, listed(more["tool_calls"], "tool_calls")))
    unlearned = {} if is_to_be_learned(said, role) else {"train": False}
    return {"role": role, "content": content, **more, **unlearned}


def content_of(value: Any) -> Any:
    """A content as text, or as parts where there are several.

    Raises `MessageError` for parts of other kinds, as images.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return text_in(value, "content")
    texts = list(map(text_of_part, value))
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def text_of_part(part: Any) -> str:
    """The text of one part of a content."""
    if not isinstance(part, Mapping):
        return text_in(part, "a part of content")
    kind = part.get("type")
    text = part.get("text")
    unnamed = kind is None and text is None
    if unnamed or kind not in TEXTS or not isinstance(text, (str, type(None))):
        said = f"of type {kind!r}" if kind else f"with the keys {', '.join(map(str, part))}"
        raise MessageError(f"content has a part {said}, and texts alone are read - leave it out")
    return text or ""


def text_in(value: Any, what: str) -> str:
    """A cell as text: numbers and truth values as data files write them."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise MessageError(f"{what} is {kind_of(value)} - give a text")


def call_of(call: Any) -> dict[str, Any]:
    """A call of a tool as templates expect it: a `function` with a name and a mapping as its
    arguments, which data sets hold as JSON text as well."""
    if not isinstance(call, Mapping):
        raise MessageError(f"tool_calls holds {kind_of(call)} - give objects with a function")
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
        given = parsed(given, key)
    if not isinstance(given or {}, Mapping):
        raise MessageError(f"{key} is {kind_of(given)} - give an object of names and values")
    return {**known, "function": {**function, "arguments": dict(given or {})}}


def tools_in(cell: Any) -> list[dict[str, Any]] | None:
    """The tools of a cell, each as a schema that says its name; None where there are none."""
    found = []
    for item in listed(cell, "tools"):
        tool = parsed(item, "tools") if isinstance(item, str) else item
        if not isinstance(tool, Mapping):
            raise MessageError(f"tools holds {kind_of(tool)} - give objects, JSON schemas each")
        found.append(dict(tool))
    return found or None


def is_to_be_learned(said: Mapping[str, Any], role: str) -> bool:
    """Whether a message is learned where it is an answer: not with `weight: 0` or `train: false`.

    Raises `MessageError` for other weights, and where others than the assistant are to be learned.
    """
    known = {key: said[key] for key in ("weight", "train") if not is_missing(said.get(key))}
    for key, value in known.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            wanted = "0 or 1" if key == "weight" else "true or false"
            what = (
                f"{key} should be {wanted} (got {value!r}), for an answer is learned or it is not"
            )
            raise MessageError(f"{what} - mend or remove it")
        if value and role != "assistant":
            what = f"{key} asks to learn what the {role} says, and answers alone are learned"
            raise MessageError(f"{what} - remove it")
    if len(set(map(bool, known.values()))) > 1:
        raise MessageError("weight and train say different things - keep one of them")
    return all(known.values())


def is_missing(value: Any) -> bool:
    """Whether a value is null, or not a number."""
    return value is None or value != value


def is_nothing(value: Any) -> bool:
    """Whether a key's value says nothing: null, an empty text or list."""
    return is_missing(value) or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a text ({value[:40]!r})" if isinstance(value, str) else repr(value)[:40]


def text_of(message: Message) -> str:
    """A message's content as one text."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def is_answer(message: Message) -> bool:
    """Whether a message is the assistant's."""
    return bool(message["role"] == "assistant")


def is_learned(message: Message) -> bool:
    """Whether a message is an answer that is to be learned."""
    return is_answer(message) and message.get("train", True)
