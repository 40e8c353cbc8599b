"""The base class of data components: columns, splits, and how rows are sampled."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from peftkit.data.augmentation import Augment
from peftkit.data.cross_validation import GROUP, Fold, select_fold
from peftkit.data.layout import SplitName, find_layout, rename_splits
from peftkit.data.reading import FileSplits, UsedRoles, build_splits
from peftkit.data.splits import Limit, Splits, SplitSettings, prepare_splits
from peftkit.data.validation import Need, RequestedColumn, to_role
from peftkit.errors import DataError, Fault, nearest
from peftkit.hub.source import Source
from peftkit.registry import Component

CROSS_VALIDATION_SETTINGS = ("fold", "folds", "group")
"""Settings of cross-validation."""
ADDED_SETTINGS = (*CROSS_VALIDATION_SETTINGS, "splits", "empty", "few_shot", "balance", "augment")
"""Settings added after the first records: not part of the names of rows or runs unless set."""
ADDED_ROLES = ("tools",)
"""Roles added after the first records: not part of the names of rows unless the files have them."""
# settings that by themselves change no row
_NOT_ROWS = {"kind", "path", "name", "revision", "fallback", "max_length", "truncation"}


def _check_share(value: float | int) -> float | int:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("should be a share between 0 and 1, or a number of rows")
    if value < 0:
        raise ValueError("should not be negative")
    return value


Share = Annotated[int | float, AfterValidator(_check_share)]


class Data(Component):
    """A dataset: its location, its columns, and how its rows are sampled."""

    family: ClassVar[str] = "data"
    package: ClassVar[str] = "peftkit.data"

    text: str = "text"
    """Column with the text."""
    text_pair: str | None = None
    """Column with the second text, for tasks that compare two."""
    label: str = "label"
    """Column with the label."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns of other roles that a task reads: role to column."""
    labels: list[str] | None = None
    """Label names in the order of their ids."""
    max_length: PositiveInt = 256
    """Maximum number of tokens per example."""
    truncation: Literal["some", "all"] = "some"
    """Whether `max_length` may truncate every text ('all'), or is then considered a mistake
    ('some')."""
    validation: Share = 0.1
    """Share (or number) of training rows for validation, if there is no validation split."""
    test: Share = 0.2
    """Share (or number) of training rows for testing, if there is no test split."""
    limit: Limit = Field(default_factory=Limit)
    """Maximum number of rows per split."""
    seed: int = 0
    """Seed for sampling and splitting rows; separate from training.seed, so that all seeds are
    scored on the same rows."""
    overlap: Literal["warn", "drop", "forbid"] = "warn"
    """What to do about test rows whose texts are also in train or validation."""
    fold: NonNegativeInt | None = None
    """Index of the fold to score, from 0, with `folds`."""
    folds: Annotated[int, Field(ge=2)] | None = Field(default=None, validate_default=True)
    """Number of folds of a cross-validation over all labeled rows, stratified by label, shuffled by
    `seed`."""
    group: str | None = None
    """Column whose equal values are kept in one fold (an author, a document)."""
    splits: dict[SplitName, SplitName] | None = None
    """Which split of the files to use as which: {test: validation} scores the official validation
    split, ignores the official test split, and takes validation rows from train."""
    empty: Literal["drop"] | None = None
    """drop: rows without a text, or another value that the task requires, are removed and counted;
    otherwise they are an error."""
    few_shot: PositiveInt | None = None
    """Train on this number of rows per class, sampled by `seed`."""
    balance: Literal["oversample"] | None = None
    """oversample: rows of rarer classes are repeated until all classes have as many as the
    largest."""
    augment: Augment | None = None
    """Adds copies of training rows with changed words."""

    @field_validator("folds")
    @classmethod
    def _one_fold_is_taken(cls, folds: int | None, info: ValidationInfo) -> int | None:
        fold = info.data.get("fold")
        if folds is None and fold is not None:
            raise ValueError(f"is not set, but data.fold={fold} is - set the number of folds")
        if folds is not None and "fold" in info.data and (fold is None or fold >= folds):
            what = "data.fold is not set" if fold is None else f"there is no fold {fold}"
            raise ValueError(f"is {folds}, but {what} - set data.fold to 0 up to {folds - 1}")
        return folds

    @field_validator("group")
    @classmethod
    def _groups_go_with_folds(cls, group: str | None, info: ValidationInfo) -> str | None:
        if group is not None and info.data.get("folds", 0) is None:
            raise ValueError("keeps the rows of a fold together - set data.folds, or remove it")
        return group

    def resolve(self) -> Source:
        """Find the data, downloading it if needed; runs on one rank, which shares the result.

        Raises `DataError` if no source has it.
        """
        raise NotImplementedError

    def load(
        self,
        source: Source,
        roles: Mapping[str, Need],
        inputs: Sequence[str] = (),
        used: UsedRoles | None = None,
    ) -> Splits:
        """Return the splits of `source` with a column for each of `roles` (role to whether it is
        required). Rows with equal `inputs` (default: equal texts) count as duplicates. Roles that
        are present but not in `used` may contain unreadable values.

        Raises one `DataError` that lists all problems of the files.
        """
        disable_progress_bars_in_logs()
        data = self.settings_for(source)
        wanted = data.wanted(roles)
        found = data.read_splits(source, wanted, used)
        if source.note:
            found = replace(found, notes=(source.note, *found.notes))
        if data.folds is not None and data.fold is not None:
            found = select_fold(found, Fold(data.fold, data.folds), data.seed)
        drawing = SplitSettings(
            data.validation, data.test, data.limit, data.seed, data.overlap, data.few_shot,
            data.balance == "oversample", data.augment, inputs,
        )  # fmt: skip
        there = {role for rows in found.splits.values() for role in rows.column_names}
        named = [want for want in wanted if want.role in there or want.role not in ADDED_ROLES]
        return prepare_splits(found, drawing, data.key(source, named))

    def settings_for(self, source: Source) -> "Data":
        """Return the settings to read `source` with: those of the fallback if it is one."""
        return self

    def read_splits(
        self, source: Source, wanted: list[RequestedColumn], used: UsedRoles | None = None
    ) -> FileSplits:
        """Return the splits as they are in the files of `source`."""
        layout = find_layout(Path(source.location), getattr(self, "subset", None))
        layout = layout._replace(files=rename_splits(layout.files, self.splits))
        if self.splits:
            mapping = ", ".join(f"{theirs} as {ours}" for ours, theirs in self.splits.items())
            layout.notes.append(f"official splits used: {mapping} (data.splits)")
        without_empty = self.empty == "drop"
        return build_splits(layout, wanted, self.labels, source.identity, without_empty, used)

    def wanted(self, roles: Mapping[str, Need]) -> list[RequestedColumn]:
        """Return the columns to read for `roles`; raises `DataError` for settings that no role
        uses."""
        unused = [role for role in self.columns if role not in roles]
        faults = [
            Fault(f"data.columns.{role}", f"the task reads no {role!r} - {nearest(role, roles)}")
            for role in unused
        ]
        if self.text_pair and "text_pair" not in roles:
            faults.append(Fault("data.text_pair", "the task reads one text only - remove it"))
        if roles.get("text_pair") and not self._column("text_pair"):
            faults.append(Fault("data.text_pair", "the task reads two texts - name the second"))
        if faults:
            raise DataError("the data does not suit the task:", faults)
        found = []
        for role, need in roles.items():
            if column := self._column(role):
                requested = to_role(role, need)
                needed = requested.needed or self._is_set(role)
                found.append(RequestedColumn(role, column, needed, requested.blank, requested.cell))
        return [*found, RequestedColumn(GROUP, self.group, needed=True)] if self.group else found

    def key(self, source: Source, wanted: list[RequestedColumn]) -> str:
        """Return a hash of the rows: of the content of `source`, and of every setting that selects
        rows."""
        unset = {name for name in ADDED_SETTINGS if getattr(self, name) is None}
        settings: dict[str, Any] = self.model_dump(mode="json", exclude=_NOT_ROWS | unset)
        settings["roles"] = {want.role: want.column for want in wanted}
        parts = json.dumps([source.identity, settings], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()

    def _column(self, role: str) -> str | None:
        own = getattr(self, role) if role in {"text", "text_pair", "label"} else role
        return self.columns.get(role, own)

    def _is_set(self, role: str) -> bool:
        field = type(self).model_fields.get(role)
        return role in self.columns or (field is not None and getattr(self, role) != field.default)


def disable_progress_bars_in_logs() -> None:
    """Disable the progress bars of `datasets` unless stderr is a terminal."""
    if not sys.stderr.isatty():
        from datasets import disable_progress_bars

        disable_progress_bars()
