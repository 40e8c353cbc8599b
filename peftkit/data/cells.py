"""Cell types: how the value of a role is read from files and callers."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from peftkit.readers.values import CellError, parse_nested, to_integers, to_plain, to_text

Cell = Literal[
    "text", "label", "labels", "number", "words", "messages", "prompt", "tools", "answers", "place"
]
"""Cell type of a role. text: a text. label: one class per row. labels: any number of classes.
number: a regression target. words: a list of words or tags. messages: a conversation. prompt: a
text or a conversation. tools: tool schemas. answers: correct answers, optionally with positions.
place: a span of a text."""
LIST_CELLS = ("words", "labels")
"""Cell types that are lists in some files and text in others."""
NESTED_CELLS = ("messages", "prompt", "tools", "answers", "place")
"""Cell types with a different structure per row."""
CELL_OF_ROLE: Mapping[str, Cell] = {
    "label": "label", "tokens": "words", "tags": "words", "messages": "messages",
    "conversations": "messages", "prompt": "prompt", "completion": "prompt", "tools": "tools",
    "answers": "answers",
    "head": "place", "tail": "place",
}  # fmt: skip
"""Cell type by role, unless the task sets it; text for other roles."""
_QUOTED_LIST = re.compile(r"\[\s*(['\"]).*\1\s*\]", re.DOTALL)


def read_cell(value: Any, cell: Cell) -> Any:
    """Return a file's or caller's value as its cell type; None if it is missing.

    Numbers and booleans are read as text where text is expected, as their file writes them (3, 3.0,
    1e5); bytes are decoded as UTF-8. Raises `CellError` for ambiguous values.
    """
    found = to_plain(value)
    if found is None or found != found:
        return None
    return _READERS[cell](found)


def read_text(value: Any) -> str | None:
    """Return a value as text; None for an empty list or object."""
    if isinstance(value, (list, dict)) and not value:
        return None
    if isinstance(value, list):
        raise CellError("is a list", "join its parts into one text, or name a column of text")
    if isinstance(value, dict):
        fix = "name a column of text"
        if value and all(key.isdigit() for key in value):
            fix = "write rows, with pandas as to_json(orient='records', lines=True)"
        raise CellError("is an object", fix)
    return to_text(value)


def unwrap_single(value: Any) -> Any:
    """Return the only item of a list, None for an empty one, and other values unchanged."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise CellError(f"has {len(value)} values", "give one, or set task=multilabel")
    return value[0] if value else None


def read_label(value: Any) -> str | None:
    """Return a label, which may be in a list of one."""
    one = unwrap_single(value)
    if isinstance(one, (list, dict)):
        raise CellError("is not a label", "give a text or a number")
    return None if one is None or one != one else to_text(one)


def read_number(value: Any) -> Any:
    """Return a number, or the text given instead of one."""
    one = unwrap_single(value)
    if isinstance(one, (list, dict)):
        raise CellError("is not a number", "give one")
    return to_text(one) if isinstance(one, (bool, str)) else one


def read_words(value: Any) -> Any:
    """Return a list of texts, also from text of a list; other text unchanged."""
    if not isinstance(value, list):
        text = read_text(value)
        if not text or not _QUOTED_LIST.fullmatch(text.strip()):
            return text
        value = parse_nested(text)
    if not isinstance(value, list):
        fix = 'write it as json, as ["EU", "rejects"], or with spaces between the words'
        raise CellError("is text that looks like a list and is not", fix)
    return [_read_item(each, number) for number, each in enumerate(value, 1)]


def _read_item(value: Any, number: int) -> str:
    if value is None or value != value:
        raise CellError("is null", "give it, or remove the row", f"item {number}")
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise CellError(f"is {kind}", "give a text", f"item {number}")
    return to_text(value)


def parse_list(text: str) -> list[str] | None:
    """Return the items of a list written as text; None for other text."""
    found = parse_nested(text)
    if not isinstance(found, list) or any(e is None or isinstance(e, (list, dict)) for e in found):
        return None
    return [to_text(each) for each in found]


def read_messages(value: Any) -> list[dict[str, Any]] | None:
    """Return a list of messages, also from text; None for blank text."""
    if isinstance(value, str) and not value.strip():
        return None
    found = parse_nested(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        what = "is text" if isinstance(value, str) else "is not a list"
        raise CellError(f"{what}, not a conversation", "give a list of {role, content}")
    return [_read_message(each, number) for number, each in enumerate(found, 1)]


def _read_message(value: Any, number: int) -> dict[str, Any]:
    """Return a message with its content as text."""
    if not isinstance(value, dict):
        raise CellError("is not an object", "give {role, content}", f"message {number}")
    words = {k: v for k, v in value.items() if k in ("role", "from", "content", "value")}
    spelled = {k: to_text(v) for k, v in words.items() if isinstance(v, (bool, int, float))}
    return {**value, **spelled}


def read_prompt(value: Any) -> str | list[dict[str, Any]] | None:
    """Return a text, or a list of messages, also from text."""
    if isinstance(value, list):
        return read_messages(value)
    if isinstance(value, str):
        found = parse_nested(value)
        if isinstance(found, list) and found and all(map(_is_message, found)):
            return read_messages(found)
    return read_text(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"role", "from"})


def read_tools(value: Any) -> list[Any] | None:
    """Return a list of tools, also from text; None for blank text."""
    if isinstance(value, str) and not value.strip():
        return None
    found = parse_nested(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise CellError("is not a list of tools", "give their JSON schemas, or rename the column")
    return found


def read_answers(value: Any) -> Any:
    """Return the answers to a question, also from text, with their texts as strings and positions
    as integers.

    An answer may begin with a bracket: [3] is a text, ["3"] is a list.
    """
    found = parse_nested(value) if isinstance(value, str) else value
    if isinstance(value, str) and not (isinstance(found, dict) or _holds_answers(found)):
        return value
    if isinstance(value, str) and not found:  # no answer, unlike an empty cell
        return {"text": [], "answer_start": []}
    if isinstance(found, list):
        return [
            _read_answer(each) if isinstance(each, dict) else _numbers_to_text(each)
            for each in found
        ]
    return _read_answer(found) if isinstance(found, dict) else to_text(found)


def _holds_answers(value: Any) -> bool:
    listed = isinstance(value, list)
    return listed and (not value or any(isinstance(each, (str, dict)) for each in value))


def _read_answer(value: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Callable[[Any], Any]] = {"text": _numbers_to_text, "answer_start": to_integers}
    return {k: known[k](v) if k in known else v for k, v in value.items()}


def _numbers_to_text(value: Any) -> Any:
    """Return numbers and booleans as text, also in lists."""
    if isinstance(value, list):
        return [_numbers_to_text(each) for each in value]
    return to_text(value) if isinstance(value, (bool, int, float)) else value


def read_span(value: Any) -> Any:
    """Return a span of a text: [start, end], {start, end}, or either as text."""
    found = parse_nested(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        return {key: to_integers(inner) for key, inner in found.items()}
    return value if found is None else to_integers(found)


_READERS: Mapping[Cell, Callable[[Any], Any]] = {
    "text": read_text, "label": read_label, "labels": read_words, "number": read_number,
    "words": read_words, "messages": read_messages, "prompt": read_prompt, "tools": read_tools,
    "answers": read_answers, "place": read_span,
}  # fmt: skip
