"""Reader of CoNLL files: a word per line with its tags, and blank lines between sentences."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from peftkit.readers.base import DataReader
from peftkit.readers.lines import Flaw, Lines, Record

UNIVERSAL_COLUMNS = (
    "id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc",
)  # fmt: skip
"""The columns of CoNLL-U (https://universaldependencies.org/format.html)."""


class ConllReader(DataReader):
    """CoNLL and CoNLL-U, the latter without multiword tokens (1-2) and empty nodes (1.1)."""

    suffixes = (".conll", ".conllu", ".iob", ".iob2", ".bio")

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield a row per sentence."""
        lines = Lines(path)
        for sentence in read_sentences(lines, universal=path.suffix.lower() == ".conllu"):
            yield from lines.new_flaws()
            yield sentence
        yield from lines.new_flaws()


def read_sentences(lines: Iterable[str], universal: bool = False) -> Iterator[Record | Flaw]:
    """Yield the sentences: `tokens` is the first column, `tags` the last, those between them are
    `column_2`, `column_3`, ... Columns are separated by tabs, or else by spaces.

    Lines with -DOCSTART- are skipped, as are comments: lines that begin with # and have a different
    number of columns than the first word.
    """
    width, first, words = 0, 0, list[list[str]]()
    for number, line in enumerate(lines, 1):
        fields = split_fields(line)
        if not fields or fields[0] == "-DOCSTART-":
            if words:
                yield sentence_record(words, first, universal)
            words = []
            continue
        if fields[0].startswith("#") and len(fields) != width:
            continue
        width = width or len(fields)
        if len(fields) != width:
            what = f"has {len(fields)} columns, but the first word has {width} - fix the line"
            yield Flaw(f"line {number}", what)
            continue
        if width == 1 or (universal and width != len(UNIVERSAL_COLUMNS)):
            needed = f"{len(UNIVERSAL_COLUMNS)} columns" if universal else "a tag after each word"
            yield Flaw(f"line {number}", f"has {width} columns - give {needed}")
            return
        first = first if words else number
        if not universal or fields[0].isdigit():
            words.append(fields)
    if words:
        yield sentence_record(words, first, universal)


def split_fields(line: str) -> list[str]:
    """Return the columns of a line; an empty list for a blank one."""
    stripped = line.rstrip("\r\n")
    return stripped.split("\t") if "\t" in stripped and stripped.strip() else stripped.split()


def sentence_record(words: list[list[str]], first: int, universal: bool) -> Record:
    """Return a sentence as a row of lists; `first` is the line number of its first word."""
    between = [f"column_{number}" for number in range(2, len(words[0]))]
    names = UNIVERSAL_COLUMNS if universal else ("tokens", *between, "tags")
    columns = (list(column) for column in zip(*words, strict=True))
    return Record(f"line {first}", dict(zip(names, columns, strict=True)))
