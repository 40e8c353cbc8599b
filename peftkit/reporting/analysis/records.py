"""Evidence: the records that a report is made of, and those that cannot be used."""

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
"""What a report reads of a record's recipe."""
MOST_FOLDS = 1_000_000
MOST_PLACE = 100
"""Letters of the name of what is wrong in a record."""
OPTIONAL: dict[str, type] = {"data.fold": int, "data.folds": int}


@dataclass(frozen=True)
class Run:
    """One run: its record, and what lies beside it."""

    where: str
    """The folder's name, or the record's."""
    record: RunRecord
    folder: Path | None
    """Where its predictions and its log lie; None where that is out of reach."""

    @property
    def finished(self) -> bool:
        """Whether the run has a score."""
        return self.record.status == "finished"

    @property
    def seed(self) -> int:
        """What the run was seeded with."""
        return int(self.record.recipe["training"]["seed"])

    @property
    def fold(self) -> int | None:
        """Which fold of a cross-validation the run scores."""
        return self.record.recipe["data"].get("fold")  # type: ignore[no-any-return]

    @property
    def turn(self) -> int:
        """What runs of one strategy are told apart and paired by: the fold, else the seed."""
        return self.seed if self.fold is None else self.fold

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of its log with a validation score; none where there is no log, or it is
        damaged."""
        path = self.folder / "log.jsonl" if self.folder is not None else None
        try:
            if path is None or not path.is_file():
                return []
            # the last line may be cut short; most others are of training steps
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            scored = [line for line in whole.split(b"\n") if b'"eval_score"' in line]
            lines = parse_strict(b"[" + b",".join(scored) + b"]")
        except (ValueError, OSError):
            return []
        return [x for x in lines if isinstance(x, dict) and isinstance(x.get("step"), int)]

    @property
    def task(self) -> Task | None:
        """The task; None where this peftkit has none of its kind and settings."""
        return task_of(json.dumps(self.record.recipe["task"], sort_keys=True))

    @property
    def names(self) -> list[str]:
        """The labels' names in the order of their ids; of older records, as their scores say."""
        if self.record.labels:
            return self.record.labels
        # the headline stands first, out of that order
        first = "recall[" if self.record.headline.startswith("precision[") else "precision["
        return [name[len(first) : -1] for name in self.record.scores if name.startswith(first)]


@cache
def task_of(settings: str) -> Task | None:
    """The task that settings, as JSON, describe."""
    try:
        return Task.parse(json.loads(settings), "task")
    except RecipeError:  # a plug-in's, or one of another version: its scores can be told still
        return None


@dataclass
class Evidence:
    """All runs that were found, and what could not be read."""

    runs: list[Run] = field(default_factory=list)
    unread: list[Fault] = field(default_factory=list)
    """Records that cannot be used, each with its reason."""
    notes: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def add(self, record: RunRecord, folder: Path, in_reach: bool) -> None:
        """Take a run in, under its folder's name or as much of its path as tells it from others."""
        parts = [told_name(part) for part in folder.parts]
        names = ("/".join(parts[-n:]) for n in range(1, len(parts) + 1))
        more = (f"{told_name(folder.name)} #{n}" for n in itertools.count(2))
        where = next(n for n in itertools.chain(names, more) if n not in self._taken)
        self._taken.add(where)
        self.runs.append(Run(where, record, folder if in_reach else None))


def gather(
    records: Iterable[RunRecord | Path | str] | RunRecord | Path | str, root: Path = Path("runs")
) -> Evidence:
    """The runs of records, run folders, or folders of them.

    Raises `RunError` where a path does not exist, or no record can be read.
    """
    found, seen = Evidence(), set()
    for each in [records] if isinstance(records, (RunRecord, Path, str)) else records:
        if isinstance(each, RunRecord):
            folder = run_folder(each, root)
            take(found, each, folder, belongs(folder, each))
            continue
        for path in record_paths(Path(each), found):
            try:
                place = path.stat()
                if (place.st_dev, place.st_ino) in seen:
                    continue
                seen.add((place.st_dev, place.st_ino))
                take(found, read_record(path), path.parent, True)
            except (OSError, RunError, ValidationError) as error:
                found.unread.append(Fault(told_name(path.parent.name), reason_of(error, path)))
    if not found.runs:
        raise RunError("there is no record to report on - name folders of runs", found.unread)
    return found


def reason_of(error: Exception, path: Path) -> str:
    """Why a record is not used, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:MOST_PLACE]
        return f"is no record of a run ({place}: {first['msg'].lower()}) - run again"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror}) - mend or remove it"
    return str(error).removeprefix(f"{path}: ")


def record_paths(path: Path, found: Evidence) -> list[Path]:
    """The `record.json` files at or below `path`; folders of unfinished runs are noted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunError(f"{path}: there is no such folder - name a run, or a folder of runs")
    found_here = {"run.json": set[Path](), "record.json": set[Path]()}

    def untold(error: OSError) -> None:
        place = told_name(Path(error.filename).name)
        found.unread.append(Fault(place, reason_of(error, Path(error.filename))))

    for folder, folders, names in os.walk(path, onerror=untold):
        for name in found_here.keys() & {*names, *folders}:
            found_here[name].add(Path(folder))
    without = found_here["run.json"] - found_here["record.json"]
    left = sorted(told_name(each.name) for each in without)
    if left:
        found.notes.append(
            f"{counted(len(left), 'run has', 'runs have')} no record yet and "
            f"{'is' if len(left) == 1 else 'are'} not in the table: {listed(left)}"
        )
    return sorted(each / "record.json" for each in found_here["record.json"])


def take(found: Evidence, record: RunRecord, folder: Path, in_reach: bool) -> None:
    """Add a run, or say why it cannot be used."""
    for path, kind in {**NEEDED, **OPTIONAL}.items():
        value = value_at(record.recipe, path)
        if value is None and path in OPTIONAL:
            continue
        known = type(value) is kind  # a truth value would pass for a number
        if not known or (path == "data.folds" and not 0 < value <= MOST_FOLDS):
            said = "nothing of" if value is None else f"{str(value)[:40]!r} of"
            what = f"its recipe says {said} {path} - run again"
            found.unread.append(Fault(told_name(folder.name), what))
            return
    found.add(record, folder, in_reach)


def belongs(folder: Path, record: RunRecord) -> bool:
    """Whether `folder` holds this very record, so that what lies beside it may be read."""
    try:
        said = read_record(folder / "record.json")
    except (RunError, ValidationError):
        return False
    return said.digest == record.digest and said.finished_at == record.finished_at


def value_at(settings: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def told_name(name: str) -> str:
    """A folder's name, in which bytes that are no text are question marks."""
    return name.encode("utf-8", "replace").decode()


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def by_key(runs: Iterable[Run], key: Any) -> Iterator[tuple[Any, list[Run]]]:
    """Runs in groups of the same key, in the order they are found in."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    yield from groups.items()
