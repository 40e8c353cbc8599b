"""Rows of data files, the parts that cannot be read, and the lines of text files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Record(NamedTuple):
    """One row of a file."""

    place: str
    """Its place in the file: 'line 7' of a text file, 'row 6' of a Parquet file."""
    values: Mapping[str, Any]


class Flaw(NamedTuple):
    """A part of a file that cannot be read."""

    place: str
    what: str


class Lines:
    """The lines of a UTF-8 file, with their line ends and without a byte-order mark. Bytes that are
    not UTF-8 are recorded as flaws and replaced by '�'."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flaws: list[Flaw] = []

    def __iter__(self) -> Iterator[str]:
        encoding = "utf-8-sig"  # only the first line may begin with a byte-order mark
        for number, line in enumerate(read_byte_lines(self.path), 1):
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                what = f"is not UTF-8 (byte 0x{byte:02x}) - save the file as UTF-8"
                self.flaws.append(Flaw(f"line {number}", what))
                yield line.decode(encoding, errors="replace")
            encoding = "utf-8"

    def new_flaws(self) -> list[Flaw]:
        """Return the flaws found since the last call."""
        flaws, self.flaws = self.flaws, []
        return flaws


def read_byte_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines, split at line feeds, or at carriage returns (classic Mac OS) if the first
    line ends with one."""
    if has_carriage_return_ends(path):
        # Latin-1 keeps every byte; only text files can be opened with another line end
        with path.open(encoding="latin-1", newline="\r") as text:
            yield from (line.encode("latin-1") for line in text)
    else:
        with path.open("rb") as file:
            yield from file


def has_carriage_return_ends(path: Path) -> bool:
    """Return whether a lone carriage return ends the first line; one before a line feed, or before
    a Windows line end, does not."""
    with path.open("rb") as file:
        while chunk := file.readline(1 << 16):
            if b"\r" in chunk:
                end = chunk[chunk.index(b"\r") :] + file.read(2)
                return not end.startswith((b"\r\n", b"\r\r\n"))
            if chunk.endswith(b"\n"):
                return False
    return False
