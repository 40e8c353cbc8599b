"""Train, validation and test splits: created, limited and checked for overlap."""

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
    """Maximum number of rows per split, sampled by `data.seed`."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    """Default: validation shrinks in proportion to train."""
    test: PositiveInt | None = None


@dataclass(frozen=True)
class Splits:
    """The rows to train on, to validate on and to test on: a column per role, and `row`, their
    name."""

    train: datasets.Dataset
    validation: datasets.Dataset
    """May be empty, as may `test`."""
    test: datasets.Dataset
    """Scored at the end; not used to choose anything."""
    names: tuple[str, ...] | None
    """Class names in id order, if the files or `data.labels` declare them."""
    notes: tuple[str, ...]
    """What the user should know."""
    facts: dict[str, int]
    """Counts: rows per split, `overlap` with test, `dropped`, `duplicates` within train, and rows
    added to train (`oversampled`, `augmented`)."""
    key: str
    """A hash of the rows: of their content and of every setting that selects them."""


class SplitSettings(NamedTuple):
    """The settings that select rows from those in the files."""

    validation: float
    test: float
    limit: Limit
    seed: int
    overlap: Literal["warn", "drop", "forbid"]
    few_shot: int | None = None
    oversample: bool = False
    augment: Augment | None = None
    inputs: Sequence[str] = ()
    """Roles with the texts (default: all text columns)."""


class _State(NamedTuple):
    splits: dict[Split, datasets.Dataset]
    notes: tuple[str, ...]

    def with_note(self, note: str) -> _State:
        return self._replace(notes=(*self.notes, note))

    def with_rows(self, split: Split, rows: datasets.Dataset) -> _State:
        return self._replace(splits={**self.splits, split: rows})


def prepare_splits(found: FileSplits, drawing: SplitSettings, key: str) -> Splits:
    """Return the splits: missing ones are taken from train, then all are limited and compared."""
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
    """Return the indices of `count` rows, stratified by label, in the order of the file.

    The rows of each class are shuffled and spread evenly over [0, 1); the `count` lowest positions
    are selected. So classes of one row need no exception, and a larger sample contains a smaller
    one.
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
    """Return the class of each row as a number; all the same unless labels are discrete."""
    import numpy as np

    if "label" in rows.column_names and getattr(rows.features["label"], "dtype", "") == "string":
        names, classes = np.unique(np.asarray(rows["label"][:], dtype=str), return_inverse=True)
        if len(names) <= max(2, rows.num_rows // 2):
            return classes
    return np.zeros(rows.num_rows, dtype=int)


def _score_validation(work: _State) -> _State:
    """Use the official validation split for testing if there is no labeled test split."""
    if "test" in work.splits or "validation" not in work.splits:
        return work
    splits: dict[Split, datasets.Dataset] = {
        "train": work.splits["train"],
        "test": work.splits["validation"],
    }
    note = "there is no labeled test split: the official validation split is scored instead"
    return _State(splits, (*work.notes, note))


def _carve_splits(work: _State, drawing: SplitSettings) -> _State:
    """Take missing test and validation splits from train."""
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
                f"{split}: {count} of the {whole} training rows, sampled by data.seed"
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
    note = f"few-shot: {drawing.few_shot} rows per class of train, sampled by data.seed"
    return work.with_rows("train", few).with_note(f"{note}: {few.num_rows} of {train} rows")


def _add_training_rows(work: _State, drawing: SplitSettings) -> tuple[_State, dict[str, int]]:
    """Add repeated rows of rare classes to train, then copies with changed words."""
    from peftkit.data.sampling import oversample

    train, added = work.splits["train"], {}
    if drawing.oversample:
        rows = oversample(train, drawing.seed)
        added["oversampled"] = rows.num_rows - train.num_rows
        note = f"train: {added['oversampled']} repeated rows of rarer classes (data.balance)"
        work, train = work.with_rows("train", rows).with_note(note), rows
    if drawing.augment is not None:
        roles = [role for role in drawing.inputs if role in train.column_names]
        rows = augment_rows(train, drawing.augment, roles, drawing.seed)
        added["augmented"] = rows.num_rows - train.num_rows
        note = f"train: {added['augmented']} copies with changed words (data.augment)"
        work = work.with_rows("train", rows).with_note(note)
    return work, added


def _limit_split(work: _State, split: Split, count: int, seed: int) -> _State:
    rows = work.splits[split]
    if count >= rows.num_rows:
        few = f"data.limit.{split} is {count}, but {split} has {rows.num_rows} rows: all are used"
        return work.with_note(few) if count > rows.num_rows else work
    return work.with_rows(split, rows.select(sample_rows(rows, count, seed, f"limit {split}")))


def _drop_overlap(work: _State, inputs: Sequence[str]) -> tuple[_State, int]:
    """Remove rows with the texts of test rows from train and validation."""
    known = dict(_hash_texts(work.splits["test"], inputs))
    dropped = 0
    for split in ("train", "validation"):
        rows = work.splits[split]
        kept = [i for i, (text, _) in enumerate(_hash_texts(rows, inputs)) if text not in known]
        dropped += rows.num_rows - len(kept)
        work = work.with_rows(split, rows.select(kept))
    if not work.splits["train"].num_rows:
        todo = "give other files, or set data.overlap=warn"
        raise DataError(f"every training row is also in the test split - {todo}")
    if dropped:
        work = work.with_note(
            f"{dropped} training or validation rows that are also in test were removed"
        )
    return work, dropped


def _find_overlap(work: _State, inputs: Sequence[str]) -> list[tuple[str, str]]:
    """Return test rows whose texts are also in train or validation, each with one such row."""
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
    """Count training rows with the texts of another."""
    import numpy as np

    texts = (text for text, _ in _hash_texts(work.splits["train"], inputs))
    hashes = array("q", (int.from_bytes(t[:8], "big", signed=True) for t in texts))
    repeats = len(hashes) - len(np.unique(np.asarray(hashes)))
    note = f"{repeats} of {len(hashes)} training rows repeat the text of another"
    return (work.with_note(note) if repeats else work), repeats


def _report_overlap(work: _State, shared: list[tuple[str, str]], overlap: str) -> _State:
    pairs = ", ".join(f"{test} = {train}" for test, train in shared[:3])
    total = work.splits["test"].num_rows
    what = f"{len(shared)} of {total} test rows are also in train or validation ({pairs})"
    if overlap == "forbid":
        raise DataError(f"{what} - data.overlap=drop removes them from train")
    return work.with_note(f"{what}; data.overlap=drop removes them from train")


def _hash_texts(rows: datasets.Dataset, inputs: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """Yield a hash of each row's texts, ignoring case and white space, and the row's name."""
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
