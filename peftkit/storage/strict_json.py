"""Strict JSON parsing, which reports damaged files when they are read."""

import json
from typing import Any

DEEPEST = 100
"""Maximum nesting; records have about six levels."""
LARGEST_WHOLE = 2**64
LARGEST = 1e100
"""Larger numbers are not valid counts or measurements, and their sums would overflow."""


def parse_strict(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises `ValueError` if it is damaged, nested too deeply, repeats a key, or has a number that is
    too large or a text that is not valid Unicode.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise ValueError("it is nested too deeply")
    if "\\u" in text and not is_encodable(value):
        raise ValueError("a text has a lone surrogate")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; raises `ValueError` for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:40]!r} is repeated")
    return found


def parse_integer(digits: str) -> int:
    """Return an integer within the range of counts."""
    if len(digits) > 20 or abs(int(digits)) >= LARGEST_WHOLE:
        raise ValueError(f"the number {shorten(digits)} is too large")
    return int(digits)


def parse_float(digits: str) -> float:
    """Return a float that can be summed."""
    found = float(digits)
    if abs(found) > LARGEST:
        raise ValueError(f"the number {shorten(digits)} is too large")
    return found


def shorten(digits: str) -> str:
    """Return a number's digits for a message."""
    return digits if len(digits) <= 24 else f"{digits[:8]}... of {len(digits)} characters"


def is_deep(value: Any) -> bool:
    """Return whether a value is nested more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, (dict, list)) for each in level)


def is_encodable(value: Any) -> bool:
    """Return whether all strings are valid Unicode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_int=parse_integer, parse_float=parse_float
)
"""Created once: `json.loads` would create one per call."""
