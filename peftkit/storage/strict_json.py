"""Plain JSON that runs wrote: damage is told when it is read, not met where it is used."""

import json
from typing import Any

DEEPEST = 100
"""Levels of lists and mappings; records have about six."""
LARGEST_WHOLE = 2**64
LARGEST = 1e100
"""Numbers beyond these are nothing that a run counts or measures, and no sum of them is safe."""


def parse_strict(text: str | bytes) -> Any:
    """What JSON says.

    Raises `ValueError` where it is damaged, nested too deeply, says a key twice, or holds a number
    that is too large or a text that no file can hold.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        said = DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deep(said):
        raise ValueError("it is nested too deeply")
    if "\\u" in text and not is_encodable(said):
        raise ValueError("a text holds half of a letter (a lone surrogate)")
    return said


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys are said once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:40]!r} is said twice")
    return found


def parse_integer(digits: str) -> int:
    """A whole number of a size that counts have."""
    if len(digits) > 20 or abs(int(digits)) >= LARGEST_WHOLE:
        raise ValueError(f"the number {shorten(digits)} is too large")
    return int(digits)


def parse_float(digits: str) -> float:
    """A number of a size that can be added up."""
    found = float(digits)
    if abs(found) > LARGEST:
        raise ValueError(f"the number {shorten(digits)} is too large")
    return found


def shorten(digits: str) -> str:
    """A number as an error can name it."""
    return digits if len(digits) <= 24 else f"{digits[:8]}... of {len(digits)} characters"


def is_deep(said: Any) -> bool:
    """Whether there are more levels than a record has."""
    level = [said]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, (dict, list)) for each in level)


def is_encodable(said: Any) -> bool:
    """Whether all texts are letters that a file can hold."""
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_int=parse_integer, parse_float=parse_float
)
"""Made once: `json.loads` would make one for each text."""
