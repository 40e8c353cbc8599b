"""Cells: what a value of a file is as a text, a label, a list of words or a conversation."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from peftkit.readers.values import CellError, parse_nested, to_integers, to_plain, to_text

Cell = Literal[
    "text", "label", "labels", "number", "words", "messages", "prompt", "tools", "answers", "place"
]
"""What a role's cells are. text: a text. label: the one class of a row. labels: any number of
classes. number: a target of a regression. words: words, or tags of words. messages: a conversation.
prompt: a text or a conversation. tools: schemas of tools. answers: right answers, maybe with their
places. place: a part of a text."""
LIST_CELLS = ("words", "labels")
"""Cells that are lists in some files and text in others."""
NESTED_CELLS = ("messages", "prompt", "tools", "answers", "place")
"""Cells whose parts have types of their own in every row."""
CELL_OF_ROLE: Mapping[str, Cell] = {
    "label": "label", "tokens": "words", "tags": "words", "messages": "messages",
    "conversations": "messages", "prompt": "prompt", "completion": "prompt", "tools": "tools",
    "answers": "answers",
    "head": "place", "tail": "place",
}  # fmt: skip
"""By role what its cells are, where the task does not say; those of other roles are texts."""
_QUOTED_LIST = re.compile(r"\[\s*(['\"]).*\1\s*\]", re.DOTALL)


def read_cell(value: Any, cell: Cell) -> Any:
    """A file's or a caller's value as what `cell` says; None where it is missing.

    A number is read as text where text is wanted, in its file's own spelling (3, 3.0, 1e5), and so
    are true and false; bytes are read as UTF-8. Raises `CellError` where the meaning is not clear.
    """
    found = to_plain(value)
    if found is None or found != found:
        return None
    return _READERS[cell](found)


def read_text(value: Any) -> str | None:
    """A plain value as a text; None of a list or an object without anything in it."""
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
    """The one item of a list; None of an empty one; what is no list as it is."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise CellError(f"holds {len(value)} values", "give one, or say task=multilabel")
    return value[0] if value else None


def read_label(value: Any) -> str | None:
    """A label, maybe in a list by itself."""
    one = unwrap_single(value)
    if isinstance(one, (list, dict)):
        raise CellError("is no label", "give a text or a number")
    return None if one is None or one != one else to_text(one)


def read_number(value: Any) -> Any:
    """A number, or the text that stands in its place."""
    one = unwrap_single(value)
    if isinstance(one, (list, dict)):
        raise CellError("is no number", "give one")
    return to_text(one) if isinstance(one, (bool, str)) else one


def read_words(value: Any) -> Any:
    """A list of texts, also of one that stands as text with quotes; any other text as it is."""
    if not isinstance(value, list):
        text = read_text(value)
        if not text or not _QUOTED_LIST.fullmatch(text.strip()):
            return text
        value = parse_nested(text)
    if not isinstance(value, list):
        fix = 'write it as json, as ["EU", "rejects"], or with blanks between the words'
        raise CellError("is a list written as text that cannot be told", fix)
    return [_read_item(each, number) for number, each in enumerate(value, 1)]


def _read_item(value: Any, number: int) -> str:
    if value is None or value != value:
        raise CellError("is null", "give it, or remove the row", f"item {number}")
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise CellError(f"is {kind}", "give a text", f"item {number}")
    return to_text(value)


def parse_list(text: str) -> list[str] | None:
    """The items of a list that stands as text; None where it is none."""
    found = parse_nested(text)
    if not isinstance(found, list) or any(e is None or isinstance(e, (list, dict)) for e in found):
        return None
    return [to_text(each) for each in found]


def read_messages(value: Any) -> list[dict[str, Any]] | None:
    """A list of messages, maybe as text; None of a blank one."""
    if isinstance(value, str) and not value.strip():
        return None
    found = parse_nested(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        what = "is text" if isinstance(value, str) else "is no list"
        raise CellError(f"{what}, and no conversation", "give a list of {role, content}")
    return [_read_message(each, number) for number, each in enumerate(found, 1)]


def _read_message(value: Any, number: int) -> dict[str, Any]:
    """A message, whose words are text."""
    if not isinstance(value, dict):
        raise CellError("is no object", "give {role, content}", f"message {number}")
    words = {k: v for k, v in value.items() if k in ("role", "from", "content", "value")}
    spelled = {k: to_text(v) for k, v in words.items() if isinstance(v, (bool, int, float))}
    return {**value, **spelled}


def read_prompt(value: Any) -> str | list[dict[str, Any]] | None:
    """A text, or a list of messages, maybe as text."""
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
    """A list of tools, maybe as text; None of a blank one."""
    if isinstance(value, str) and not value.strip():
        return None
    found = parse_nested(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise CellError("is no list of tools", "give their JSON schemas, or rename the column")
    return found


def read_answers(value: Any) -> Any:
    """Answers of a question, maybe as text: their texts are text, their places whole numbers.

    An answer may begin with a bracket: [3] is a text, ["3"] is a list.
    """
    found = parse_nested(value) if isinstance(value, str) else value
    if isinstance(value, str) and not (isinstance(found, dict) or _holds_answers(found)):
        return value
    if isinstance(value, str) and not found:  # no answer, where a cell without items is no cell
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
    """Numbers and truth values as text, also within a list."""
    if isinstance(value, list):
        return [_numbers_to_text(each) for each in value]
    return to_text(value) if isinstance(value, (bool, int, float)) else value


def read_span(value: Any) -> Any:
    """A part of a text: [start, end], {start, end}, or either as text."""
    found = parse_nested(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        return {key: to_integers(inner) for key, inner in found.items()}
    return value if found is None else to_integers(found)


_READERS: Mapping[Cell, Callable[[Any], Any]] = {
    "text": read_text, "label": read_label, "labels": read_words, "number": read_number,
    "words": read_words, "messages": read_messages, "prompt": read_prompt, "tools": read_tools,
    "answers": read_answers, "place": read_span,
}  # fmt: skip
