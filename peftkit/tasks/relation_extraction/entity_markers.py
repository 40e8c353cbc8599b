"""Head and tail of a relation: two spans of a text, given by markers in it or by offsets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]
"""First character and the one behind the last."""
_MARK = re.compile(r"</?e[12]>")
_ENDS = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


class MarkerError(ValueError):
    """Why a text's two parts cannot be told."""


class Marked(NamedTuple):
    """A text without marks, and its two parts: the head (e1) and the tail (e2)."""

    text: str
    head: Span
    tail: Span


def marked(text: str, head: Any = None, tail: Any = None) -> Marked:
    """The text's two parts: where `head` and `tail` say, or else between its own marks.

    Raises `MarkerError`.
    """
    if head is None and tail is None:
        return between_marks(text)
    if head is None or tail is None:
        raise MarkerError("only one of head and tail is there - give both")
    if _MARK.search(text):
        raise MarkerError("there are both marks in the text and offsets - take one of them out")
    spans = span_of(text, head, "head"), span_of(text, tail, "tail")
    (_, first_end), (second_start, _) = sorted(spans)
    if first_end > second_start:
        raise MarkerError("head and tail overlap - give spans that do not overlap")
    return Marked(text, *spans)


def between_marks(text: str) -> Marked:
    """The parts between <e1> and </e1> and between <e2> and </e2>, each of which comes once."""
    found = [match[0] for match in _MARK.finditer(text)]
    for mark in ("<e1>", "</e1>", "<e2>", "</e2>"):
        if mark not in found:
            raise MarkerError(f"there is no {mark} - mark both parts, as in <e1>rain</e1>")
        if found.count(mark) > 1:
            raise MarkerError(f"there are several {mark} - mark each part once")
    if [mark[-3:] for mark in found] not in (
        ["e1>", "e1>", "e2>", "e2>"],
        ["e2>", "e2>", "e1>", "e1>"],
    ):
        raise MarkerError(f"markers are nested ({' '.join(found)}) - separate them")
    if found[0][1] == "/" or found[2][1] == "/":
        raise MarkerError(f"a marker ends before it begins ({' '.join(found)}) - swap them")
    plain = _MARK.sub("", text)
    ends, removed = {}, 0
    for match in _MARK.finditer(text):
        ends[match[0]] = match.start() - removed
        removed += len(match[0])
    spans = [(ends[f"<e{n}>"], ends[f"</e{n}>"]) for n in (1, 2)]
    if any(not plain[start:end].strip() for start, end in spans):
        raise MarkerError("a marker encloses nothing - mark at least one word")
    return Marked(plain, *spans)


def with_marks(given: Marked, kinds: Sequence[str]) -> str:
    """The text with marks around both parts, each with what its kind is called: ':person', ''."""
    text = given.text
    parts = zip((given.head, given.tail), (1, 2), kinds, strict=True)
    for (start, end), number, kind in sorted(parts, reverse=True):
        mark = f"e{number}{kind}>"
        text = f"{text[:start]}<{mark}{text[start:end]}</{mark}{text[end:]}"
    return text


def span_of(text: str, given: Any, role: str) -> Span:
    """Characters that a cell names: [3, 9], {start: 3, end: 9} or '3:9', the end excluded."""
    said = given
    if isinstance(given, str) and (match := _ENDS.fullmatch(given)):
        said = [int(match[1]), int(match[2])]
    elif isinstance(given, Mapping):
        said = [given.get("start"), given.get("end")]
    if not isinstance(said, Sequence) or [type(end) for end in said] != [int, int]:
        raise MarkerError(f"{role} is no place in the text - give [start, end], as in [3, 9]")
    start, end = said
    if not 0 <= start < end <= len(text):
        raise MarkerError(f"{role} is outside its text, or ends before it begins - fix the offsets")
    if not text[start:end].strip():
        raise MarkerError(f"{role} is only white space - fix the offsets")
    words = given.get("text") if isinstance(given, Mapping) else None
    if words is not None and words != text[start:end]:
        raise MarkerError(f"the text of {role} is not what is at its offsets - fix the offsets")
    return start, end
