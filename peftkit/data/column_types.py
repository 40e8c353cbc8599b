"""Column types, inferred from all cells of all files before rows are written."""

from collections.abc import Iterator
from typing import Literal

from peftkit.data.cells import LIST_CELLS, NESTED_CELLS
from peftkit.data.validation import CellScan, FileScan, RequestedColumn, count_rows
from peftkit.errors import Fault

ColumnType = Literal["text", "float", "words", "labels", "nested"]
"""Type of a column: text, float, lists of text, or nested values."""


def infer_column_type(surveys: list[FileScan], want: RequestedColumn) -> ColumnType:
    """Return the type of a role's column.

    It is a list if any cell is a list, or if all are text of lists; text in a list column becomes a
    list. Numbers are floats if any is written as one and none is a word.
    """
    seen = cells_of(surveys, want)
    lists, texts = (sum(getattr(s, name) for s in seen) for name in ("lists", "texts"))
    if want.cell == "number":
        fractional = any(s.floats for s in seen) and not any(s.worded for s in seen)
        return "float" if fractional else "text"
    if want.cell in LIST_CELLS:
        of_text = not texts and any(s.lists_as_text for s in seen)
        return want.cell if lists or of_text else "text"  # type: ignore[return-value]
    return "nested" if want.cell in NESTED_CELLS and lists else "text"


def integer_label_roles(surveys: list[FileScan], wanted: list[RequestedColumn]) -> tuple[str, ...]:
    """Return the label roles all of whose numbers are integers.

    Tables with missing values store integers as 0.0 and 1.0; as labels these are 0 and 1.
    """
    labels = [want for want in wanted if want.cell in ("label", "labels")]
    return tuple(w.role for w in labels if not any(s.fractions for s in cells_of(surveys, w)))


def find_mixed_lists(
    surveys: list[FileScan], want: RequestedColumn, kind: ColumnType
) -> Iterator[Fault]:
    """Yield a fault for text in a column of lists that may be one label or several."""
    for survey in surveys if kind == "labels" else ():
        if (places := survey.roles[want.role].several).count:
            what = f"is text in {count_rows(places)}, and a list in others - give lists in all"
            yield Fault(f"{survey.name}, column {want.column!r}", what)


def note_single_items(surveys: list[FileScan], want: RequestedColumn) -> Iterator[str]:
    """Yield notes on lists of one item that are read as the item."""
    for survey in surveys:
        if (places := survey.roles[want.role].alone).count:
            what = f"has lists of one value in {count_rows(places)}, read as the value"
            yield f"{survey.name}: column {want.column!r} {what}"


def cells_of(surveys: list[FileScan], want: RequestedColumn) -> list[CellScan]:
    """Return what each file contains of a role."""
    return [survey.roles[want.role] for survey in surveys]
