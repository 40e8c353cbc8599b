"""Lines: the rows of a file and its faults, and a text file's lines whatever ends them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Record(NamedTuple):
    """One row of a file."""

    place: str
    """Where it stands: 'line 7' of a text file, 'row 6' of a parquet file."""
    values: Mapping[str, Any]


class Flaw(NamedTuple):
    """A place in a file that cannot be read."""

    place: str
    what: str


class Lines:
    """The lines of a UTF-8 file (with or without a byte-order mark) with their ends; where bytes
    are no UTF-8, a flaw is kept and '�' stands in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flaws: list[Flaw] = []

    def __iter__(self) -> Iterator[str]:
        encoding = "utf-8-sig"  # only the first line may begin with a byte-order mark
        for number, line in enumerate(byte_lines(self.path), 1):
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                what = f"is not UTF-8 (byte 0x{byte:02x}) - save the file as UTF-8"
                self.flaws.append(Flaw(f"line {number}", what))
                yield line.decode(encoding, errors="replace")
            encoding = "utf-8"

    def new_flaws(self) -> list[Flaw]:
        """The flaws since this was last asked."""
        flaws, self.flaws = self.flaws, []
        return flaws


def byte_lines(path: Path) -> Iterator[bytes]:
    """The lines as bytes, ended by a line feed; or by a carriage return, as on old Macs, where the
    first line is."""
    if ends_in_returns(path):
        # Latin-1 keeps every byte; only text files can be told what ends a line
        with path.open(encoding="latin-1", newline="\r") as text:
            yield from (line.encode("latin-1") for line in text)
    else:
        with path.open("rb") as file:
            yield from file


def ends_in_returns(path: Path) -> bool:
    """Whether a carriage return by itself ends the first line: one before a line feed, or before
    what Windows writes as its own line end, does not."""
    with path.open("rb") as file:
        while chunk := file.readline(1 << 16):
            if b"\r" in chunk:
                end = chunk[chunk.index(b"\r") :] + file.read(2)
                return not end.startswith((b"\r\n", b"\r\r\n"))
            if chunk.endswith(b"\n"):
                return False
    return False
