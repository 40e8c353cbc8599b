"""Tagged rows: words with a tag each, from lists or plain text, and everything wrong with them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from peftkit.data.validation import Occurrences, count_rows
from peftkit.errors import Fault
from peftkit.tasks.token_classification.schemes import (
    OUTSIDE,
    Entity,
    misplaced,
    scheme_of,
    tag_names,
    tag_of,
    types_in,
)

WORD = re.compile(r"\w+(?:[-.,/&'\u2019](?!s\b)\w+)*|['\u2019]s\b|([^\w\s])\1*")
"""A word of plain text: letters and digits, also across one of - . , / & ' between them; 's by
itself; any other mark by itself, or with its own repetitions."""


class Sentence(NamedTuple):
    """Words, and where they stand in the text they are from."""

    words: list[str]
    spans: list[tuple[int, int]]
    """First character and the one behind the last."""
    text: str


def sentence_of(value: Sequence[Any] | str) -> Sentence:
    """Plain text cut into words; or a list of words, whose text has blanks between them."""
    if isinstance(value, str):
        matches = list(WORD.finditer(value))
        return Sentence([m[0] for m in matches], [m.span() for m in matches], value)
    words, spans, start = [str(word) for word in value], [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return Sentence(words, spans, " ".join(words))


def sentences_in(rows: Any) -> list[Sentence]:
    """The words of rows with tags, of rows of words or of plain texts."""
    there = columns_in(rows)
    cells = rows["tokens" if "tokens" in there else "text"]
    return [sentence_of(listed(cell) if "tags" in there else cell) for cell in cells]


def columns_in(rows: Any) -> Iterable[str]:
    """The names of the columns, of a data set or of plain lists."""
    names: Iterable[str] = getattr(rows, "column_names", rows)
    return names


def located(entity: Entity, sentence: Sentence, sure: Sequence[float]) -> dict[str, Any]:
    """An entity with its place in the text, its words there, and the least sure of its tags."""
    start, end = sentence.spans[entity.first][0], sentence.spans[entity.end - 1][1]
    return {
        "type": entity.type,
        "start": start,
        "end": end,
        "text": sentence.text[start:end],
        "probability": min(sure[entity.first : entity.end]),
    }


def listed(value: Any) -> list[Any]:
    """A column's cell as a list: tables of text hold words with blanks between them."""
    return value.split() if isinstance(value, str) else list(value)


def tagged(rows: Any) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Each row's name, words and tags."""
    columns = (rows["row"], rows["tokens"], rows["tags"])
    for name, words, tags in zip(*columns, strict=True):
        yield name, listed(words), listed(tags)


Tags = Mapping[str, Mapping[str, list[str]]]
"""Split to row to its tags."""


def tags_of(rows: Any) -> dict[str, list[str]]:
    """The tags of each row, by the row's name."""
    return {name: [str(tag) for tag in tags] for name, _, tags in tagged(rows)}


def plain_names(tags: Tags, declared: Sequence[str]) -> tuple[tuple[str, ...], list[Fault]]:
    """Names of tags that mark no entities: those declared, else train's; and what is wrong."""
    seen = {tag for row in tags["train"].values() for tag in row}
    names = tuple(declared) or tuple(sorted(seen))
    return names, [f for split, rows in tags.items() for f in unlearned(split, rows, names, "tag")]


def marking_names(
    tags: Tags, declared: Sequence[str], scheme: str
) -> tuple[tuple[str, ...], list[Fault]]:
    """All tags of IOB2 for the types declared, else train's; and what is wrong with the tags."""
    if faults := [fault for split, rows in tags.items() for fault in of_no_scheme(split, rows)]:
        return (OUTSIDE, ""), faults
    known = scheme_of(tags["train"].values()) if scheme == "auto" else scheme
    faults = [fault for split, rows in tags.items() for fault in ill_formed(split, rows, known)]
    seen = types_in({tag for row in tags["train"].values() for tag in row})
    types = types_in(declared) or sorted(seen)
    for split, rows in tags.items():
        of_rows = {row: types_in(found) for row, found in rows.items()}
        faults += unlearned(split, of_rows, types, "type")
    names = tag_names(types)
    return (tuple(declared) if set(declared) == set(names) else names), faults


def unpaired(split: str, rows: Any) -> list[Fault]:
    """Rows whose words and tags do not fit together, or are not there."""
    found: dict[str, Occurrences] = {}
    for name, words, tags in tagged(rows):
        if len(words) != len(tags):
            note(found, "uneven", f"{name} ({len(words)} words, {len(tags)} tags)")
        if any(tag is None for tag in tags):
            note(found, "untagged", f"{name} (word {tags.index(None) + 1})")
        if any(word is None or not str(word).strip() for word in words):
            note(found, "wordless", name)
    said = {
        "uneven": "the numbers of words and tags differ in {} - fix or remove them",
        "untagged": "a word has no tag in {} - tag it, or remove the row",
        "wordless": "a word is empty in {} - fill it, or remove it with its tag",
    }
    where = {"wordless": "tokens"}
    return [
        Fault(
            f"{split}, column of {where.get(what, 'tags')!r}", said[what].format(count_rows(places))
        )
        for what, places in found.items()
    ]


def of_no_scheme(split: str, sentences: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Tags that say nothing of entities."""
    names = {name for tags in sentences.values() for name in tags}
    strange = sorted(name for name in names if tag_of(name) is None)
    if not strange:
        return []
    told = ", ".join(map(repr, strange[:5])) + (" ..." if len(strange) > 5 else "")
    what = (
        f"{len(strange)} tags are of no scheme ({told}): one is O, or a letter and a type as in "
        "B-PER - fix them; for plain tags, such as parts of speech, set task.scheme=none"
    )
    return [Fault(f"{split}, column of 'tags'", what)]


def ill_formed(split: str, sentences: Mapping[str, Sequence[str]], scheme: str) -> list[Fault]:
    """Tags that their scheme does not have where they stand."""
    places = Occurrences()
    for name, tags in sentences.items():
        if wrong := misplaced(tags, scheme):
            place = wrong[0]
            tag = repr(tags[place]) if place < len(tags) else "the end"
            before = repr(tags[place - 1]) if place else "the beginning"
            places.add(f"{name}: {tag} behind {before}")
    if not places.count:
        return []
    fix = {
        "iob2": "if I- may begin an entity set task.scheme=iob1, else fix the tags",
        "iob1": "if B- begins every entity set task.scheme=iob2, else fix the tags",
    }.get(scheme, "fix the tags, or say which scheme they are in (task.scheme)")
    what = f"ill-formed in the scheme {scheme} in {count_rows(places)} - {fix}"
    return [Fault(f"{split}, column of 'tags'", what)]


def unlearned(
    split: str, sentences: Mapping[str, Iterable[str]], known: Sequence[str], kind: str
) -> list[Fault]:
    """Tags or types of entities that train never has."""
    found: dict[str, Occurrences] = {}
    for name, values in sentences.items():
        for value in set(values) - set(known):
            note(found, value, name)
    return [
        Fault(
            f"{split}, column of 'tags'",
            f"the {kind} {value!r} is in {count_rows(places)}, and train never has it ("
            f"{', '.join(known)}) - fix or remove the rows, or name all in data.labels",
        )
        for value, places in sorted(found.items())
    ]


def note(found: dict[str, Occurrences], what: str, place: str) -> None:
    """Count one more of `what`, at `place`."""
    found.setdefault(what, Occurrences()).add(place)
