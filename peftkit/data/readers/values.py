"""Values: what a file or a caller gives as plain values of json, each with the file's spelling."""

import ast
import json
import math
import re
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


class Unreadable(ValueError):
    """A cell that cannot be read as what its role wants: what is wrong, how to mend it, and in
    which part of the cell."""

    def __init__(self, what: str, fix: str, part: str = "") -> None:
        super().__init__(what, fix, part)
        self.what, self.fix, self.part = what, fix, part

    def __str__(self) -> str:
        return f"{self.part} {self.what} - {self.fix}".lstrip()


class Written(float):
    """A number that knows how its file writes it."""

    text: str

    def __new__(cls, text: str, value: float | None = None) -> "Written":
        """Of a number's text; or of a `value` and the text to write it with."""
        number = super().__new__(cls, text if value is None else value)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def plain(value: Any) -> Any:
    """A value as json has it: None, a truth value, a number, a text, a list or a mapping.

    Dates and decimal numbers are texts. Raises `Unreadable` for all else, and for bytes and texts
    that no UTF-8 can hold.
    """
    if isinstance(value, str):
        return checked(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {written(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decoded(bytes(value))
    return _of_library(value)


def _of_library(value: Any) -> Any:
    """A value of numpy, pandas, torch or the standard library."""
    if isinstance(value, (date, time, Decimal)):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return Written(str(value), float(value))
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise Unreadable(f"is a {type(value).__name__}", "give text, numbers, lists or mappings")


def checked(text: str) -> str:
    """The text, where it is one: halves of characters (surrogates) stand for nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise Unreadable(f"holds half a character ({half})", "mend or remove it") from None
    return text


def decoded(value: bytes) -> str:
    """Bytes as text."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        what = f"is bytes that are not UTF-8 (byte 0x{value[error.start]:02x})"
        raise Unreadable(what, "write it as text, or name a column of text") from None


def written(value: Any) -> str:
    """A text, number or truth value as its file spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if type(value) is str else str(value)


def from_text(text: str) -> Any:
    """What a text says as json, or as Python writes lists and mappings; None where it is neither.

    Tables of text hold nested values so.
    """
    bare = text.strip()
    if (bare[:1], bare[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    try:
        return plain(json.loads(bare, parse_float=Written, parse_constant=Written))
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(bare)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    # 'a' 'b', as numpy writes a list, is one text for Python
    return plain(value) if repr(value) == bare else None


def whole(value: Any) -> Any:
    """Numbers without a fraction as whole ones, also within a list: tables that lack a few hold
    the others as 3.0."""
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without_fraction(label: str) -> str:
    """A whole number as its digits alone: 1 for 1.0."""
    match = _WHOLE.fullmatch(label)
    return match[1] if match else label


def is_number(value: Any) -> bool:
    """Whether a label says a number, be it as text."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def has_fraction(value: Any) -> bool:
    """Whether a label is a number that is not whole."""
    return is_number(value) and math.isfinite(float(value)) and not float(value).is_integer()
