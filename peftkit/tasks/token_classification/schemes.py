"""Tagging schemes: how the tags of words say where entities begin and end."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OUTSIDE = "O"
PREFIXES = {"iob1": "IOB", "iob2": "IOB", "bilou": "BILOU", "iobes": "IOBES"}
"""The letters that each scheme's tags begin with."""
NAMELESS = "_"
"""The type of tags that name none ('B'), as seqeval calls it."""
_TAG = re.compile(r"([BILUES])(?:-(.+))?")


class Entity(NamedTuple):
    """Words that are one thing."""

    type: str
    first: int
    end: int
    """The number of the word behind the last."""


class Tag(NamedTuple):
    """A tag in its parts."""

    prefix: str
    type: str


def tag_of(name: str) -> Tag | None:
    """The parts of a tag: 'B-PER' is B and PER; None for what no scheme has."""
    if name == OUTSIDE:
        return Tag(OUTSIDE, "")
    match = _TAG.fullmatch(name)
    return Tag(match[1], match[2] or NAMELESS) if match else None


def named(prefix: str, type_: str) -> str:
    """The tag of a prefix and a type."""
    return prefix if type_ == NAMELESS else f"{prefix}-{type_}"


def tag_names(types: Iterable[str]) -> tuple[str, ...]:
    """All tags of the scheme IOB2 for entities of these types."""
    return (OUTSIDE, *(named(prefix, type_) for type_ in types for prefix in "BI"))


def types_in(names: Iterable[str]) -> list[str]:
    """The types that tags name, in the order in which they come."""
    tags = (tag_of(name) for name in names)
    return list(dict.fromkeys(tag.type for tag in tags if tag is not None and tag.type))


def marks_entities(names: Iterable[str]) -> bool:
    """Whether all names are tags of a scheme, so that they say where entities are."""
    return all(tag_of(name) for name in names)


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme that the tags of the sentences are in; iob2 where they are well-formed in none.

    Tags that no scheme has are left out.
    """
    kept = list(sentences)
    prefixes = {tag.prefix for name in {n for s in kept for n in s} if (tag := tag_of(name))}
    if prefixes & set("LU"):
        return "bilou"
    if prefixes & set("ES"):
        return "iobes"
    unfit = any(misplaced(sentence, "iob2") for sentence in kept)
    return "iob1" if unfit and not any(misplaced(s, "iob1") for s in kept) else "iob2"


def misplaced(tags: Sequence[str], scheme: str) -> list[int]:
    """The places of tags that the scheme has not, or not there; at the end counts as one more."""
    outside = Tag(OUTSIDE, "")
    parts = [tag_of(name) or outside for name in tags]
    pairs = zip([outside, *parts], [*parts, outside], strict=True)
    return [
        place for place, (before, tag) in enumerate(pairs) if not _may_follow(before, tag, scheme)
    ]


def _may_follow(before: Tag, tag: Tag, scheme: str) -> bool:
    if tag.prefix not in PREFIXES[scheme]:
        return False
    of_one_type = before.prefix != OUTSIDE and before.type == tag.type
    if scheme == "iob2":
        return tag.prefix != "I" or of_one_type
    if scheme == "iob1":  # B only parts neighbors of one type
        return tag.prefix != "B" or of_one_type
    is_open = before.prefix in "BI"
    goes_on = tag.prefix in "ILE"
    return is_open == goes_on and (not goes_on or before.type == tag.type)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags of any scheme as IOB2: B begins every entity. What is ill-formed begins an entity too,
    as the script of CoNLL's shared tasks takes it."""
    found: list[str] = []
    open_type = ""
    for name in tags:
        tag = tag_of(name)
        if tag is None:
            raise AssertionError(f"{name!r} is a tag of no scheme")
        goes_on = tag.prefix in "ILE" and tag.type == open_type
        outside = tag.prefix == OUTSIDE
        found.append(OUTSIDE if outside else named("I" if goes_on else "B", tag.type))
        open_type = "" if outside or tag.prefix in "LEUS" else tag.type
    return found


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of IOB2 tags, strictly: an I behind no B or I of its type belongs to none.

    As seqeval finds them with `mode='strict', scheme=IOB2`.
    """
    found: list[Entity] = []
    for place, name in enumerate(tags):
        tag = tag_of(name)
        if tag is None or tag.prefix == OUTSIDE:
            continue
        last = found[-1] if found else None
        if tag.prefix == "B":
            found.append(Entity(tag.type, place, place + 1))
        elif last and last.end == place and last.type == tag.type:
            found[-1] = last._replace(end=place + 1)
    return found


def best_path(log_probabilities: "Floats", names: Sequence[str]) -> list[int]:
    """The most probable well-formed sequence of IOB2 tags: ids, from (words, tags).

    Viterbi's algorithm, in which what may follow what is all that a step depends on.
    """
    import numpy as np

    tags = [tag_of(name) or Tag(OUTSIDE, "") for name in names]
    allowed = np.array([[_may_follow(a, b, "iob2") for b in tags] for a in tags])
    steps = np.where(allowed, 0.0, -np.inf)
    begins = [_may_follow(Tag(OUTSIDE, ""), tag, "iob2") for tag in tags]
    best = log_probabilities[0] + np.where(begins, 0.0, -np.inf)
    came_from = []
    for row in log_probabilities[1:]:
        through = best[:, None] + steps
        came_from.append(through.argmax(axis=0))
        best = through.max(axis=0) + row
    path = [int(best.argmax())]
    for sources in reversed(came_from):
        path.append(int(sources[path[-1]]))
    return path[::-1]
