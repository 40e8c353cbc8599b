"""The base class of data file readers; declaring a subclass registers its suffixes."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

from peftkit.errors import DataError, Fault, RecipeError
from peftkit.readers.lines import Flaw, Record
from peftkit.registry import descendants, full_name, import_declarations, import_plugins


class DataReader:
    """One file format. Subclass it in peftkit.readers, or in a plug-in, to add another."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name suffixes of the format, lower case, with their dot."""
    version: ClassVar[int] = 1
    """Increase it when the reader returns different rows for the same file, so that cached rows
    are not reused."""

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield the rows of a file in order, and a `Flaw` for each part that cannot be read.

        Only the `wanted` columns are needed (None: all); a reader may yield more.
        """
        raise NotImplementedError

    def columns(self, path: Path) -> list[str]:
        """Return the columns that the file's header or schema declares, if it has one."""
        return []

    def class_names(self, path: Path) -> dict[str, list[str]]:
        """Return the class names, in id order, of each column whose schema declares them."""
        return {}


def readers() -> dict[str, DataReader]:
    """Return every registered reader by suffix, in alphabetical order.

    Raises `RecipeError` if two readers have the same suffix, or a plug-in cannot be imported.
    """
    import_declarations("peftkit.readers")
    import_plugins()
    found: dict[str, DataReader] = {}
    for cls in descendants(DataReader):
        for suffix in cls.suffixes:
            known = type(found[suffix]) if suffix in found else cls
            if full_name(known) != full_name(cls):
                both = " and ".join(sorted(map(full_name, (known, cls))))
                what = f"{both} both read {suffix} files - remove the suffix from one"
                raise RecipeError("two readers have the same suffix:", [Fault("plugins", what)])
            found[suffix] = cls()
    return dict(sorted(found.items()))


def reader_for(path: Path) -> DataReader:
    """Return the reader of a file; raises `DataError` if there is none for its suffix."""
    known = readers()
    if reader := known.get(path.suffix.lower()):
        return reader
    raise DataError(f"{path}: no reader for this suffix - save it as one of {', '.join(known)}")
