"""Lines: the rows of a file and its faults, and a text file's lines whatever ends them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


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
    """The lines as bytes. They end in a line feed, maybe behind a carriage return (CR); in two CRs
    and a line feed, which Windows makes of its own line ends when it writes them as text; or in a
    CR, as on old Macs. The end of the first line tells which."""
    with path.open("rb") as file:
        ending = first_ending(file)
        file.seek(0)
        if ending == b"\r":
            # Latin-1 keeps every byte; only text files can be told what ends a line
            with path.open(encoding="latin-1", newline="\r") as text:
                yield from (line.encode("latin-1") for line in text)
        elif ending == b"\r\r\n":
            yield from (line[:-3] + b"\r\n" if line.endswith(b"\r\r\n") else line for line in file)
        else:
            yield from file


def first_ending(file: BinaryIO) -> bytes:
    """What ends the first line; a file of one line has none."""
    while chunk := file.readline(1 << 16):
        place = chunk.find(b"\r")
        if place < 0:
            if chunk.endswith(b"\n"):
                return b"\n"
            continue
        end = (chunk[place:] + file.read(2))[:3]
        if end[:2] == b"\r\n":
            return b"\r\n"
        return b"\r\r\n" if end == b"\r\r\n" else b"\r"
    return b""
