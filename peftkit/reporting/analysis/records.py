"""Loads the records that a report compares."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftkit.errors import Fault, RecipeError, RunError
from peftkit.records.record import RunRecord, read_record, run_folder
from peftkit.storage.strict_json import parse_strict
from peftkit.tasks.base import Task

NEEDED: dict[str, type] = {
    "strategy.kind": str,
    "quantize.kind": str,
    "training.seed": int,
    "task.kind": str,
    "data.kind": str,
}
"""The settings that a report needs from a record's recipe."""
MOST_FOLDS = 1_000_000
MOST_PLACE = 100
"""Characters of an invalid field's path in messages."""
OPTIONAL: dict[str, type] = {"data.fold": int, "data.folds": int}


@dataclass(frozen=True)
class Run:
    """One run: its record, and the directory with its predictions and log."""

    where: str
    """The name of its directory."""
    record: RunRecord
    folder: Path | None
    """The directory of its predictions and log; None if unknown."""

    @property
    def finished(self) -> bool:
        """Whether the run has a score."""
        return self.record.status == "finished"

    @property
    def seed(self) -> int:
        """The random seed."""
        return int(self.record.recipe["training"]["seed"])

    @property
    def fold(self) -> int | None:
        """The fold of a cross-validation that the run scores."""
        return self.record.recipe["data"].get("fold")  # type: ignore[no-any-return]

    @property
    def replicate(self) -> int:
        """The fold, else the seed: runs of two strategies are paired by it."""
        return self.seed if self.fold is None else self.fold

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of its log with a validation score; empty if the log is missing or damaged."""
        path = self.folder / "log.jsonl" if self.folder is not None else None
        try:
            if path is None or not path.is_file():
                return []
            # the last line may be cut short; most others are training steps
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            scored = [line for line in whole.split(b"\n") if b'"eval_score"' in line]
            lines = parse_strict(b"[" + b",".join(scored) + b"]")
        except (ValueError, OSError):
            return []
        return [x for x in lines if isinstance(x, dict) and isinstance(x.get("step"), int)]

    @property
    def task(self) -> Task | None:
        """The task; None if its kind is not installed here."""
        return task_of(json.dumps(self.record.recipe["task"], sort_keys=True))

    @property
    def names(self) -> list[str]:
        """The label names in the order of their ids; older records have them only in scores."""
        if self.record.labels:
            return self.record.labels
        # the headline comes first, out of that order
        first = "recall[" if self.record.headline.startswith("precision[") else "precision["
        return [name[len(first) : -1] for name in self.record.scores if name.startswith(first)]


@cache
def task_of(settings: str) -> Task | None:
    """The task that settings describe, as JSON."""
    try:
        return Task.parse(json.loads(settings), "task")
    except RecipeError:  # of a plug-in or another version: its recorded scores are enough
        return None


@dataclass
class LoadedRecords:
    """The runs that were found, and the records that could not be read."""

    runs: list[Run] = field(default_factory=list)
    unread: list[Fault] = field(default_factory=list)
    """Records that cannot be used, each with the reason."""
    notes: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def add(self, record: RunRecord, folder: Path, in_reach: bool) -> None:
        """Add a run under the shortest end of its path that no other run has."""
        parts = [printable_name(part) for part in folder.parts]
        names = ("/".join(parts[-n:]) for n in range(1, len(parts) + 1))
        more = (f"{printable_name(folder.name)} #{n}" for n in itertools.count(2))
        where = next(n for n in itertools.chain(names, more) if n not in self._taken)
        self._taken.add(where)
        self.runs.append(Run(where, record, folder if in_reach else None))


def load_records(
    records: Iterable[RunRecord | Path | str] | RunRecord | Path | str, root: Path = Path("runs")
) -> LoadedRecords:
    """The runs of records, run directories, or directories of those.

    Raises `RunError` if a path does not exist, or no record can be read.
    """
    found, seen = LoadedRecords(), set()
    for each in [records] if isinstance(records, (RunRecord, Path, str)) else records:
        if isinstance(each, RunRecord):
            folder = run_folder(each, root)
            add_run(found, each, folder, belongs(folder, each))
            continue
        for path in record_paths(Path(each), found):
            try:
                place = path.stat()
                if (place.st_dev, place.st_ino) in seen:
                    continue
                seen.add((place.st_dev, place.st_ino))
                add_run(found, read_record(path), path.parent, True)
            except (OSError, RunError, ValidationError) as error:
                found.unread.append(Fault(printable_name(path.parent.name), reason_of(error, path)))
    if not found.runs:
        raise RunError("there is no record to report on - give directories of runs", found.unread)
    return found


def reason_of(error: Exception, path: Path) -> str:
    """Why a record is not used."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:MOST_PLACE]
        return f"is not a valid record ({place}: {first['msg'].lower()}) - run it again"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror}) - fix or remove it"
    return str(error).removeprefix(f"{path}: ")


def record_paths(path: Path, found: LoadedRecords) -> list[Path]:
    """The `record.json` files at or below `path`; notes runs without one."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunError(f"{path}: there is no such directory - give a run, or a directory of runs")
    found_here = {"run.json": set[Path](), "record.json": set[Path]()}

    def unreadable(error: OSError) -> None:
        place = printable_name(Path(error.filename).name)
        found.unread.append(Fault(place, reason_of(error, Path(error.filename))))

    for folder, folders, names in os.walk(path, onerror=unreadable):
        for name in found_here.keys() & {*names, *folders}:
            found_here[name].add(Path(folder))
    without = found_here["run.json"] - found_here["record.json"]
    left = sorted(printable_name(each.name) for each in without)
    if left:
        found.notes.append(
            f"{counted(len(left), 'run has', 'runs have')} no record yet and "
            f"{'is' if len(left) == 1 else 'are'} not in the table: {listed(left)}"
        )
    return sorted(each / "record.json" for each in found_here["record.json"])


def add_run(found: LoadedRecords, record: RunRecord, folder: Path, in_reach: bool) -> None:
    """Add a run, or the reason why it cannot be used."""
    for path, kind in {**NEEDED, **OPTIONAL}.items():
        value = value_at(record.recipe, path)
        if value is None and path in OPTIONAL:
            continue
        known = type(value) is kind  # `True` is an `int`
        if not known or (path == "data.folds" and not 0 < value <= MOST_FOLDS):
            problem = f"no {path}" if value is None else f"{path}={str(value)[:40]!r}"
            what = f"its recipe has {problem} - run it again"
            found.unread.append(Fault(printable_name(folder.name), what))
            return
    found.add(record, folder, in_reach)


def belongs(folder: Path, record: RunRecord) -> bool:
    """Whether `folder` has exactly this record, so that its other files belong to it."""
    try:
        stored = read_record(folder / "record.json")
    except (RunError, ValidationError):
        return False
    return stored.digest == record.digest and stored.finished_at == record.finished_at


def value_at(settings: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def printable_name(name: str) -> str:
    """A directory's name, with question marks for bytes that are not text."""
    return name.encode("utf-8", "replace").decode()


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def by_key(runs: Iterable[Run], key: Any) -> Iterator[tuple[Any, list[Run]]]:
    """Groups of runs with the same key, in the order of their first runs."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    yield from groups.items()
