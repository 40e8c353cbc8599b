"""CoNLL's columns: files with a word a line, its tags beside it, a blank line behind sentences."""

from collections.abc import Iterable, Iterator

from peftkit.data.readers.lines import Flaw, Record

UNIVERSAL = ("id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U; words of several (1-2) and unwritten ones (1.1) are left out."""


def sentences(lines: Iterable[str], universal: bool = False) -> Iterator[Record | Flaw]:
    """The sentences as rows of lists: `tokens`, the first column; `tags`, the last; between them
    `column_2`, `column_3`, ... Columns stand apart by tabs, or else by blanks.

    Lines of -DOCSTART- are left out, and comments: lines that begin with # and have another number
    of columns than the first word's.
    """
    width, first, kept = 0, 0, list[list[str]]()
    for number, line in enumerate(lines, 1):
        fields = fields_of(line)
        if not fields or fields[0] == "-DOCSTART-":
            if kept:
                yield row_of(kept, first, universal)
            kept = []
            continue
        if fields[0].startswith("#") and len(fields) != width:
            continue
        width = width or len(fields)
        if len(fields) != width:
            what = f"has {len(fields)} columns, but the first word has {width} - mend the line"
            yield Flaw(f"line {number}", what)
            continue
        if width == 1 or (universal and width != len(UNIVERSAL)):
            needed = f"{len(UNIVERSAL)} columns" if universal else "a tag beside the word"
            yield Flaw(f"line {number}", f"has {width} columns - give {needed}")
            return
        first = first if kept else number
        if not universal or fields[0].isdigit():
            kept.append(fields)
    if kept:
        yield row_of(kept, first, universal)


def fields_of(line: str) -> list[str]:
    """The columns of a line; none of a blank one."""
    bare = line.rstrip("\r\n")
    return bare.split("\t") if "\t" in bare and bare.strip() else bare.split()


def row_of(words: list[list[str]], first: int, universal: bool) -> Record:
    """A sentence's columns as lists; `first` is the line of its first word."""
    width = len(words[0])
    between = [f"column_{number}" for number in range(2, width)]
    names = UNIVERSAL if universal else ("tokens", *between, "tags")
    columns = (list(column) for column in zip(*words, strict=True))
    return Record(f"line {first}", dict(zip(names, columns, strict=True)))
