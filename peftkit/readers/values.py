"""Conversion of values from files and callers to JSON types, with numbers as they were written."""

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


class CellError(ValueError):
    """A value that cannot be read as the type its role needs: what is wrong, how to fix it, and in
    which part of the cell."""

    def __init__(self, what: str, fix: str, part: str = "") -> None:
        super().__init__(what, fix, part)
        self.what, self.fix, self.part = what, fix, part

    def __str__(self) -> str:
        return f"{self.part} {self.what} - {self.fix}".lstrip()


class LiteralFloat(float):
    """A float that keeps the text it was written as."""

    text: str

    def __new__(cls, text: str, value: float | None = None) -> "LiteralFloat":
        """Create it from its text, or from a `value` and the text to show for it."""
        number = super().__new__(cls, text if value is None else value)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def to_plain(value: Any) -> Any:
    """Return a value as a JSON type: None, bool, number, str, list or dict.

    Dates and `Decimal`s become text. Raises `CellError` for other types, and for bytes and texts
    that are not valid UTF-8.
    """
    if isinstance(value, str):
        return check_text(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {to_text(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decode_bytes(bytes(value))
    return _from_library(value)


def _from_library(value: Any) -> Any:
    """Return a value of numpy, pandas, torch or the standard library as a JSON type."""
    if isinstance(value, (date, time, Decimal)):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return LiteralFloat(str(value), float(value))
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    raise CellError(f"is a {type(value).__name__}", "give text, numbers, lists or mappings")


def check_text(text: str) -> str:
    """Return the text; raises `CellError` if it has lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise CellError(f"has half a character ({half})", "fix or remove it") from None
    return text


def decode_bytes(value: bytes) -> str:
    """Decode UTF-8; raises `CellError` for other bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        what = f"is bytes that are not UTF-8 (byte 0x{value[error.start]:02x})"
        raise CellError(what, "write it as text, or name a column of text") from None


def to_text(value: Any) -> str:
    """Return a text, number or bool as its file writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if type(value) is str else str(value)


def parse_nested(text: str) -> Any:
    """Parse a list or mapping written as text, in JSON or as Python prints it, as CSV files store
    nested values; None for any other text."""
    bare = text.strip()
    if (bare[:1], bare[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    try:
        return to_plain(json.loads(bare, parse_float=LiteralFloat, parse_constant=LiteralFloat))
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(bare)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    # numpy prints a list as ['a' 'b'], which Python reads as one string
    return to_plain(value) if repr(value) == bare else None


def to_integers(value: Any) -> Any:
    """Return floats without a fraction as integers, also in lists: tables with missing values store
    integers as 3.0."""
    if isinstance(value, list):
        return [to_integers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def strip_zero_fraction(label: str) -> str:
    """Return 1 for 1.0; other text unchanged."""
    match = _WHOLE.fullmatch(label)
    return match[1] if match else label


def is_number(value: Any) -> bool:
    """Return whether a label is a number, or text of one."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def has_fraction(value: Any) -> bool:
    """Return whether a label is a number that is not an integer."""
    return is_number(value) and math.isfinite(float(value)) and not float(value).is_integer()
