"""Notes on labels that are probably one class in two spellings, or empty cells."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from peftkit.text.pairs import natural_sort_key

NO_LABELS = {"nan", "null", "none", "na", "n/a", "<na>", "nat", "inf", "-inf"}
"""What tools write into cells that hold nothing, or no number."""
MOST_TOLD = 5
"""Groups of labels that are told one by one."""


def similar_label_notes(names: Sequence[str]) -> Iterator[str]:
    """What to say of labels that differ by white space, case or Unicode form alone, and of one that
    says that there is no number among numbers."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[folded(name)].append(name)
    alike = [found for found in groups.values() if len(found) > 1]
    for found in alike[:MOST_TOLD]:
        told = f"labels {', '.join(map(visible, found))} differ by {difference(found)} alone"
        yield f"{told}: if they are one class, name it once"
    if len(alike) > MOST_TOLD:
        yield f"so do {len(alike) - MOST_TOLD} more groups of labels"
    strange = [name for name in names if name.strip().lower() in NO_LABELS]
    if strange and len(strange) < len(names) and all(map(is_number, set(names) - set(strange))):
        told = ", ".join(map(repr, strange))
        yield f"label {told} among numbers is a class: if it is an empty cell, remove its rows"


def folded(name: str) -> str:
    """What labels have in common that look alike."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def difference(names: Sequence[str]) -> str:
    """What look-alikes differ by."""
    steps: dict[str, Callable[[str], str]] = {
        "white space": lambda name: re.sub(r"\s+", " ", name).strip(),
        "case": str.casefold,
        "Unicode form": lambda name: unicodedata.normalize("NFKC", name),
    }
    single = [what for what, same in steps.items() if len({same(name) for name in names}) == 1]
    return single[0] if single else ", ".join(steps)


def visible(name: str) -> str:
    """A label as it can be told from its look-alikes: beyond ASCII in escapes, too."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"


def is_number(name: str) -> bool:
    """Whether a label is a number."""
    return natural_sort_key(name)[0] == 0
