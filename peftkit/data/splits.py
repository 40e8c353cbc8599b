"""Splits: what is learned from, chosen on and scored on; carved, limited and checked by a seed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import PositiveInt

from peftkit.data.augmentation import Augment, augment_rows
from peftkit.data.reading import FileSplits
from peftkit.data.sampling import derive_seed
from peftkit.errors import DataError, Fault
from peftkit.registry import Settings

if TYPE_CHECKING:
    import datasets
    import numpy as np

Split = Literal["train", "validation", "test"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Limit(Settings):
    """At most how many rows of each split are used, drawn at random by `data.seed`."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    """Without one, validation shrinks in proportion to train."""
    test: PositiveInt | None = None


@dataclass(frozen=True)
class Splits:
    """Rows to learn from, to choose on and to score: a column a role, and `row`, their name."""

    train: datasets.Dataset
    validation: datasets.Dataset
    """May be empty, as `test` may be."""
    test: datasets.Dataset
    """Scored at the end: nothing is chosen on it."""
    names: tuple[str, ...] | None
    """The names of the labels in id order, where the files or `data.labels` tell them."""
    notes: tuple[str, ...]
    """What the user should know."""
    facts: dict[str, int]
    """Counts: rows a split, `overlap` with test, `dropped`, `duplicates` within train; where rows
    were added to train, how many: `oversample`, `augment_rows`."""
    key: str
    """A hash of the rows: of their content and of every setting that picks them."""


class SplitSettings(NamedTuple):
    """The settings that pick rows out of what the files hold."""

    validation: float
    test: float
    limit: Limit
    seed: int
    overlap: Literal["warn", "drop", "forbid"]
    few_shot: int | None = None
    oversample: bool = False
    augment: Augment | None = None
    inputs: Sequence[str] = ()
    """The roles with the texts; without any, all that hold text."""


class _State(NamedTuple):
    splits: dict[Split, datasets.Dataset]
    notes: tuple[str, ...]

    def with_note(self, note: str) -> _State:
        return self._replace(notes=(*self.notes, note))

    def with_rows(self, split: Split, rows: datasets.Dataset) -> _State:
        return self._replace(splits={**self.splits, split: rows})


def prepare_splits(found: FileSplits, drawing: SplitSettings, key: str) -> Splits:
    """Give every split its rows: carve those that are missing, then limit, then compare them."""
    work = _State({split: found.splits[split] for split in _SPLITS if split in found.splits}, ())
    work = work._replace(notes=found.notes)
    work = _carve_splits(_score_validation(work), drawing)
    facts = {"dropped": 0}
    if drawing.limit.test:
        work = _limit_split(work, "test", drawing.limit.test, drawing.seed)
    if drawing.overlap == "drop":
        work, facts["dropped"] = _drop_overlap(work, drawing.inputs)
    work = _limit_training(work, drawing)
    shared = _find_overlap(work, drawing.inputs)
    work, facts["duplicates"] = _count_duplicates(work, drawing.inputs)
    if shared and drawing.overlap != "drop":
        work = _report_overlap(work, shared, drawing.overlap)
    work, added = _add_training_rows(work, drawing)
    facts |= added | {"overlap": len(shared)} | {s: work.splits[s].num_rows for s in _SPLITS}
    return Splits(**work.splits, names=found.names, notes=work.notes, facts=facts, key=key)


def sample_rows(rows: datasets.Dataset, count: int, seed: int, purpose: str) -> list[int]:
    """The indices of `count` rows, in the order of the file: labels keep their proportions.

    Every class is shuffled and its rows are spread evenly over [0, 1); the lowest `count` places
    are drawn. So classes of one row need no exception, and a larger draw contains a smaller one.
    """
    import numpy as np

    random = np.random.default_rng(derive_seed(seed, purpose))
    order = random.permutation(rows.num_rows)
    classes = class_ids(rows)
    places = np.empty(rows.num_rows)
    for label in range(int(classes.max()) + 1 if len(classes) else 0):
        members = order[classes[order] == label]
        places[members] = (np.arange(len(members)) + random.random()) / len(members)
    return sorted(np.argsort(places, kind="stable")[:count].tolist())


def class_ids(rows: datasets.Dataset) -> np.ndarray:
    """The class of each row as a number; all the same where labels are not discrete."""
    import numpy as np

    if "label" in rows.column_names and getattr(rows.features["label"], "dtype", "") == "string":
        names, classes = np.unique(np.asarray(rows["label"][:], dtype=str), return_inverse=True)
        if len(names) <= max(2, rows.num_rows // 2):
            return classes
    return np.zeros(rows.num_rows, dtype=int)


def _score_validation(work: _State) -> _State:
    """Without a labeled test split, the official validation split is the one that is scored."""
    if "test" in work.splits or "validation" not in work.splits:
        return work
    splits: dict[Split, datasets.Dataset] = {
        "train": work.splits["train"],
        "test": work.splits["validation"],
    }
    note = "there is no labeled test split: the official validation split is scored in its place"
    return _State(splits, (*work.notes, note))


def _carve_splits(work: _State, drawing: SplitSettings) -> _State:
    """Test and validation splits out of train where they are missing."""
    shares: dict[Split, float] = {"test": drawing.test, "validation": drawing.validation}
    whole = work.splits["train"].num_rows
    for split, share in shares.items():
        if split in work.splits:
            continue
        train = work.splits["train"]
        count = share if isinstance(share, int) else max(1, round(share * whole))
        if count >= train.num_rows:
            what = f"asks for {count} of the {train.num_rows} rows of train - ask for fewer"
            raise DataError("the data is too small:", [Fault(f"data.{split}", what)])
        chosen = sample_rows(train, count, drawing.seed, f"carve {split}")
        rest = sorted(set(range(train.num_rows)) - set(chosen))
        work = work.with_rows(split, train.select(chosen)).with_rows("train", train.select(rest))
        if count:
            work = work.with_note(
                f"{split}: {count} of the {whole} training rows, carved by data.seed"
            )
    return work


def _limit_training(work: _State, drawing: SplitSettings) -> _State:
    limit, train = drawing.limit, work.splits["train"].num_rows
    validation = limit.validation
    if limit.train and limit.train < train and validation is None:
        validation = ceil(work.splits["validation"].num_rows * limit.train / train)
    if limit.train:
        work = _limit_split(work, "train", limit.train, drawing.seed)
    if validation:
        work = _limit_split(work, "validation", validation, drawing.seed)
    if drawing.few_shot is None:
        return work
    from peftkit.data.sampling import sample_few_shot

    few = sample_few_shot(work.splits["train"], drawing.few_shot, drawing.seed)
    told = f"few-shot: {drawing.few_shot} of each class of train, drawn by data.seed"
    return work.with_rows("train", few).with_note(f"{told}: {few.num_rows} of {train} rows")


def _add_training_rows(work: _State, drawing: SplitSettings) -> tuple[_State, dict[str, int]]:
    """Rows added to train: those of rare classes again, then copies with changed words."""
    from peftkit.data.sampling import oversample

    train, added = work.splits["train"], {}
    if drawing.oversample:
        rows = oversample(train, drawing.seed)
        added["oversampled"] = rows.num_rows - train.num_rows
        told = f"train: {added['oversampled']} rows of rarer classes come again (data.balance)"
        work, train = work.with_rows("train", rows).with_note(told), rows
    if drawing.augment is not None:
        roles = [role for role in drawing.inputs if role in train.column_names]
        rows = augment_rows(train, drawing.augment, roles, drawing.seed)
        added["augmented"] = rows.num_rows - train.num_rows
        told = f"train: {added['augmented']} rows are copies with changed words (data.augment)"
        work = work.with_rows("train", rows).with_note(told)
    return work, added


def _limit_split(work: _State, split: Split, count: int, seed: int) -> _State:
    rows = work.splits[split]
    if count >= rows.num_rows:
        few = f"data.limit.{split} is {count}, but {split} has {rows.num_rows} rows: all are used"
        return work.with_note(few) if count > rows.num_rows else work
    return work.with_rows(split, rows.select(sample_rows(rows, count, seed, f"limit {split}")))


def _drop_overlap(work: _State, inputs: Sequence[str]) -> tuple[_State, int]:
    """Drop what the test split holds from the rows that are learned from or chosen on."""
    known = dict(_hash_texts(work.splits["test"], inputs))
    dropped = 0
    for split in ("train", "validation"):
        rows = work.splits[split]
        kept = [i for i, (text, _) in enumerate(_hash_texts(rows, inputs)) if text not in known]
        dropped += rows.num_rows - len(kept)
        work = work.with_rows(split, rows.select(kept))
    if not work.splits["train"].num_rows:
        todo = "give other files, or set data.overlap=warn"
        raise DataError(f"every training row stands in the test split too - {todo}")
    if dropped:
        work = work.with_note(
            f"{dropped} training or validation rows that stand in test were dropped"
        )
    return work, dropped


def _find_overlap(work: _State, inputs: Sequence[str]) -> list[tuple[str, str]]:
    """The test rows whose texts stand in train or validation too, each with where it stands."""
    known: dict[bytes, list[str]] = {}
    for text, row in _hash_texts(work.splits["test"], inputs):
        known.setdefault(text, []).append(row)
    shared: dict[str, str] = {}
    for split in ("train", "validation"):
        for text, row in _hash_texts(work.splits[split], inputs):
            for test_row in known.get(text, ()):
                shared.setdefault(test_row, row)
    return sorted(shared.items())


def _count_duplicates(work: _State, inputs: Sequence[str]) -> tuple[_State, int]:
    """How many training rows repeat the texts of another."""
    import numpy as np

    texts = (text for text, _ in _hash_texts(work.splits["train"], inputs))
    hashes = array("q", (int.from_bytes(t[:8], "big", signed=True) for t in texts))
    repeats = len(hashes) - len(np.unique(np.asarray(hashes)))
    told = f"{repeats} of {len(hashes)} training rows repeat the text of another"
    return (work.with_note(told) if repeats else work), repeats


def _report_overlap(work: _State, shared: list[tuple[str, str]], overlap: str) -> _State:
    pairs = ", ".join(f"{test} = {train}" for test, train in shared[:3])
    total = work.splits["test"].num_rows
    what = f"{len(shared)} of {total} test rows stand in train or validation too ({pairs})"
    if overlap == "forbid":
        raise DataError(f"{what} - data.overlap=drop leaves them out of train")
    return work.with_note(f"{what}; data.overlap=drop leaves them out of train")


def _hash_texts(rows: datasets.Dataset, inputs: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """A hash of each row's texts, after folding of case and white space, and the row's name."""
    held = [role for role in rows.column_names if _is_text(role, rows.features[role])]
    roles = [role for role in held if role in inputs] or held
    if not roles:
        return
    for batch in rows.select_columns([*roles, "row"]).iter(1000):
        for *texts, name in zip(*(batch[role] for role in roles), batch["row"], strict=True):
            words = [text if isinstance(text, str) else " ".join(text or ()) for text in texts]
            folded = "\n".join(" ".join(each.casefold().split()) for each in words)
            yield hashlib.blake2b(folded.encode(), digest_size=16).digest(), name


def _is_text(role: str, feature: object) -> bool:
    inner = getattr(feature, "feature", feature)
    return role not in {"id", "label", "tags", "row"} and getattr(inner, "dtype", None) == "string"
