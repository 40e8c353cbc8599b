"""Validation of the answers in a split: found, repaired, or missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peftkit.data.validation import Occurrences, count_rows
from peftkit.errors import Fault
from peftkit.tasks.question_answering.spans import answers_in, located


@dataclass
class Survey:
    """What the answers of one split are."""

    split: str
    rows: int = 0
    broken: dict[str, Occurrences] = field(default_factory=dict)
    """Cells that hold no answers, by what is wrong with them."""
    nothing: Occurrences = field(default_factory=Occurrences)
    """Rows without an answer."""
    unfound: Occurrences = field(default_factory=Occurrences)
    """Rows none of whose answers stands in the context, or several times and not where it is said
    to stand."""
    repaired: Occurrences = field(default_factory=Occurrences)
    """Answers that stand once, and elsewhere than it is said."""
    several: int = 0
    """Rows with answers in several places."""

    @property
    def usable(self) -> int:
        """Rows that something can be learned from, or that have no answer."""
        bad = sum(places.count for places in self.broken.values())
        return self.rows - bad - self.unfound.count

    def note(self, row: str, context: str, cell: Any) -> None:
        """Take one more row into account."""
        self.rows += 1
        try:
            answers = answers_in(cell)
        except ValueError as error:
            self.broken.setdefault(str(error), Occurrences()).add(f"{row} {str(cell)[:40]!r}")
            return
        found = [located(context, answer) for answer in answers]
        starts = {(start, a.text) for (_, start), a in zip(found, answers, strict=True)}
        if not answers:
            self.nothing.add(row)
        elif not any(start is not None for start, _ in starts):
            self.unfound.add(f"{row} {answers[0].text[:40]!r}")
        self.several += len(starts) > 1
        for place, _ in found:
            if place == "repaired":
                self.repaired.add(row)


def survey(rows: Any, split: str) -> Survey:
    """What the answers of a split (a data set) are."""
    found = Survey(split)
    for batch in rows.select_columns(["row", "context", "answers"]).iter(1000):
        for row in zip(batch["row"], batch["context"], batch["answers"], strict=True):
            found.note(*row)
    return found


def faults_of(
    found: Survey, unanswerable: bool, unfound: Literal["forbid", "drop"]
) -> Iterator[Fault]:
    """Everything that is wrong with a split's answers."""
    where = f"{found.split}, column of 'answers'"
    for what, places in found.broken.items():
        yield Fault(where, f"{rows_have(places)} {what}")
    if found.nothing.count and not unanswerable:
        fix = "set task.unanswerable=true if that is intended, or remove the rows"
        yield Fault(where, f"{rows_have(found.nothing)} no answer - {fix}")
    if found.unfound.count and unfound == "forbid":
        fix = (
            "fix the rows or their offsets, or set task.unfound=drop to leave them out of training"
        )
        yield Fault(where, f"{rows_have(found.unfound)} answers that the context does not - {fix}")
    elif found.split == "train" and found.rows and not found.usable:
        yield Fault(where, "no answer is found in its context - there is nothing to train on")


def rows_have(places: Occurrences) -> str:
    """How many rows, and which: '2 rows (train:3, train:8) have'."""
    return f"{count_rows(places)} {'has' if places.count == 1 else 'have'}"


def notes_of(found: Survey, examples: Mapping[str, Any]) -> Iterator[str]:
    """What was done about a split's answers, and how its rows became windows."""
    if found.unfound.count:
        done = "nothing is learned from them" if found.split == "train" else "they are scored"
        yield f"{found.split}: {rows_have(found.unfound)} answers not in the context; {done}"
    if found.repaired.count:
        places = found.repaired
        what = f"{places.count} answers are not at their answer_start ({places})"
        yield f"{found.split}: {what}; the place where they are found is used"
    if found.split == "train" and found.several:
        yield f"train: {found.several} rows have several answers; the first is learned"
    cut = {of for of, cut in zip(examples["of"], examples["truncated"], strict=True) if cut}
    if cut:
        yield f"{found.split}: the questions of {len(cut)} rows are cut (task.question_length)"
    if found.split == "train":
        yield from unlearned(found, examples)


def unlearned(found: Survey, examples: Mapping[str, Any]) -> Iterator[str]:
    """How many rows' answers no window holds whole."""
    known = {
        of for of, label in zip(examples["of"], examples["labels"], strict=True) if label[0] >= 0
    }
    left = found.usable - len(known)
    if left > 0:
        yield f"train: the answers of {left} rows fit no window whole; nothing is learned from them"
