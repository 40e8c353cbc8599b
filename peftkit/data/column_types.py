"""Settling: what a column holds, by all cells of all files, before any of them is written."""

from collections.abc import Iterator
from typing import Literal

from peftkit.data.cells import LISTED, NESTED
from peftkit.data.validation import Seen, Survey, Wanted, rows_at
from peftkit.errors import Fault

Kind = Literal["text", "float", "words", "labels", "nested"]
"""What a column holds: texts, numbers, lists of texts, or values of any shape."""


def settle(surveys: list[Survey], want: Wanted) -> Kind:
    """What the column of a role holds.

    Lists are lists if any cell is one, or if all are that stand as text; so a text among lists is a
    list too. Numbers are floats if any is written as one and none is a word.
    """
    seen = seen_of(surveys, want)
    lists, texts = (sum(getattr(s, name) for s in seen) for name in ("lists", "texts"))
    if want.cell == "number":
        fractional = any(s.floats for s in seen) and not any(s.worded for s in seen)
        return "float" if fractional else "text"
    if want.cell in LISTED:
        of_text = not texts and any(s.lists_as_text for s in seen)
        return want.cell if lists or of_text else "text"  # type: ignore[return-value]
    return "nested" if want.cell in NESTED and lists else "text"


def whole_roles(surveys: list[Survey], wanted: list[Wanted]) -> tuple[str, ...]:
    """The roles with labels all of whose numbers are whole.

    Tables hold whole numbers as 0.0 and 1.0 where some were missing; as labels these are 0 and 1.
    """
    labels = [want for want in wanted if want.cell in ("label", "labels")]
    return tuple(w.role for w in labels if not any(s.fractions for s in seen_of(surveys, w)))


def mixed_faults(surveys: list[Survey], want: Wanted, kind: Kind) -> Iterator[Fault]:
    """Texts among lists that may name one label or several."""
    for survey in surveys if kind == "labels" else ():
        if (places := survey.roles[want.role].several).count:
            what = f"is text in {rows_at(places)}, and a list in others - give lists in all"
            yield Fault(f"{survey.name}, column {want.column!r}", what)


def alone(surveys: list[Survey], want: Wanted) -> Iterator[str]:
    """What to say of lists of one item that are read as the item."""
    for survey in surveys:
        if (places := survey.roles[want.role].alone).count:
            what = f"holds lists of one value in {rows_at(places)}, read as the value"
            yield f"{survey.name}: column {want.column!r} {what}"


def seen_of(surveys: list[Survey], want: Wanted) -> list[Seen]:
    """What each file holds of a role."""
    return [survey.roles[want.role] for survey in surveys]
