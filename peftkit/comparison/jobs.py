"""Jobs: what a comparison has to do, each by one process, and how its folder tells it is done."""

import hashlib
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import ValidationError

from peftkit.comparison.settings import Budget, Comparison, Way
from peftkit.config.recipe import Recipe
from peftkit.errors import DiskError, PeftkitError, RunBusy, RunStopped
from peftkit.hub.source import Source
from peftkit.records.record import RunRecord, Tuning
from peftkit.records.run_dir import RunDir, is_held
from peftkit.runtime.distributed import versions
from peftkit.storage.atomic_files import write_text, writing

State = Literal["done", "failed", "busy", "stopped", "no disk"]


class Outcome(NamedTuple):
    """What became of a job in its process."""

    state: State
    said: str


@dataclass(frozen=True)
class Place:
    """Where a comparison lies, and what it is made on."""

    root: Path
    model: Source
    data: Source
    rows: dict[str, int]
    """Examples a split of the runs."""


@dataclass(frozen=True)
class RateJob:
    """The search for one strategy's learning rate."""

    way: Way
    budget: Budget
    place: Place
    fold: int | None = None

    @property
    def name(self) -> str:
        """What the progress and the files call it."""
        return f"rate of {self.way.name}" + told_fold(self.fold)

    @property
    def recipe(self) -> Recipe:
        """The runs' recipe, without a rate."""
        return in_fold(self.way.recipe, self.fold)

    @property
    def path(self) -> Path:
        """What the search found: there when the job is done."""
        return self.place.root / "rates" / f"{self.way.name}-{self.key[:8]}.json"

    @property
    def key(self) -> str:
        """Names all that the choice can depend on."""
        recipe = self.recipe.digest(self.place.model, self.place.data)
        return hashed([recipe, self.budget.model_dump(), self.place.rows])

    @property
    def done(self) -> bool:
        """Whether the rate is chosen."""
        return self.path.is_file()

    @property
    def lock(self) -> FileLock:
        """Held by the process that searches."""
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    @property
    def taken(self) -> bool:
        """Whether another process is at it."""
        return self.path.parent.is_dir() and is_held(self.lock)

    @property
    def found(self) -> Tuning:
        """What the search found."""
        return Tuning.model_validate_json(self.path.read_text())

    def work(self) -> str:
        """Search, in this process alone. Raises `RunBusy` where another one does."""
        from peftkit.comparison.tuning import Search

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.lock
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunBusy(f"{self.name}: another process searches") from None
        try:
            search = Search(self.recipe, self.budget, self.place.rows, self.place.root)
            with writing(self.place.root):
                found = search.run(self.place.model, self.place.data)
                write_text(self.path, found.model_dump_json(indent=1) + "\n")
        finally:
            lock.release()
        tried = ", ".join(f"{t.lr:g} {told(t.score, t.status)}" for t in found.trials)
        return f"{found.chosen:g} ({found.metric} on the validation split: {tried})"


@dataclass(frozen=True)
class RunJob:
    """One run: a strategy and a seed."""

    way: Way
    seed: int
    rate: RateJob | None
    """The search that must be done before; None: the strategy's own default."""
    place: Place
    fold: int | None = None
    reloads: bool = True
    """Whether its artifact may be loaded in a fresh process for the proof: that takes seconds, and
    one run a strategy shows it."""

    @property
    def name(self) -> str:
        """What the progress and the files call it."""
        return f"{self.way.name}, seed {self.seed}" + told_fold(self.fold)

    @property
    def folder(self) -> RunDir:
        """Its folder, once the rate is known."""
        place = self.place
        return RunDir.of(place.root / "runs", self.recipe, place.model, place.data)

    @property
    def recipe(self) -> Recipe:
        """Its recipe, with the rate that was chosen."""
        changes: dict[str, object] = {"training__seed": self.seed}
        if self.rate is not None and (chosen := self.rate.found.chosen) != self.way.recipe.lr():
            changes["training__lr"] = chosen
        if not self.reloads:
            changes["training__proof"] = "run"
        return in_fold(self.way.recipe, self.fold).but(**changes)

    @property
    def done(self) -> bool:
        """Whether it has a record, if only of its failure."""
        return (self.rate is None or self.rate.done) and self.record is not None

    @property
    def taken(self) -> bool:
        """Whether another process is at it."""
        return self.folder.taken

    @property
    def record(self) -> RunRecord | None:
        """What happened; None where nothing has, or the record is damaged."""
        try:
            return self.folder.record
        except (PeftkitError, ValidationError):
            return None

    def work(self) -> str:
        """Train, score and record, in this process. Raises as `train` does."""
        from peftkit.runs.runner import train

        tuning = self.rate.found if self.rate is not None else None
        record = train(self.recipe, self.place.root / "runs", tuning=tuning)
        score, cost = record.scores.get(record.headline), record.cost
        took = "" if cost is None else f", {cost.total_seconds:,.0f} s"
        if score is None or score.value is None:
            return f"no score{took}"
        interval = "" if score.low is None else f" [{score.low:.4f}, {score.high:.4f}]"
        return f"{record.headline} {score.value:.4f}{interval}{took}"

    def record_failure(self, reason: str) -> None:
        """Make a row of a run that has come to nothing, unless it has recorded so itself."""
        if self.record is not None:
            return
        place, recipe, folder = self.place, self.recipe, self.folder
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.begin(recipe, place.model, place.data)
        folder.finish(
            RunRecord(
                name=recipe.name,
                digest=recipe.digest(place.model, place.data),
                status="failed",
                reason=reason,
                recipe=recipe.settings(),
                model=place.model,
                data=place.data,
                rows=place.rows,
                notes=[],
                headline=recipe.task.headline,
                tuning=self.rate.found if self.rate is not None else None,
                versions=versions(),
                finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        )


Job = RateJob | RunJob


def do(job: Job) -> Outcome:
    """The job done in this process; what a user can mend, or a run can come to, in words."""
    try:
        return Outcome("done", job.work())
    except RunBusy as busy:
        return Outcome("busy", str(busy))
    except RunStopped as stopped:
        return Outcome("stopped", str(stopped))
    except DiskError as error:
        return Outcome("no disk", str(error))
    except PeftkitError as error:
        return Outcome("failed", " ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()  # into the job's own output, which the user is told of
        return Outcome("failed", f"{type(error).__name__}: {error} (an error of peftkit)")


def jobs_of(ways: Sequence[Way], comparison: Comparison, place: Place) -> list[Job]:
    """All that is to be done: every search, then every run, a seed of all strategies at a time."""
    runnable = [way for way in ways if way.refused is None]
    rates: dict[tuple[str, int | None], RateJob] = {}
    if comparison.budget.trials:
        rates = {
            (way.name, fold): RateJob(way, comparison.budget, place, fold)
            for fold in dict.fromkeys(fold for _, fold in comparison.spread)
            for way in runnable
        }
    runs = [
        RunJob(way, seed, rates.get((way.name, fold)), place, fold, reloads=not number)
        for number, (seed, fold) in enumerate(comparison.spread)
        for way in runnable
    ]
    return [*rates.values(), *runs]


def refused_jobs(ways: Sequence[Way], comparison: Comparison, place: Place) -> list[RunJob]:
    """A run a strategy that cannot be made: it is recorded, so that the table has its row."""
    seed, fold = comparison.spread[0]
    return [RunJob(way, seed, None, place, fold) for way in ways if way.refused is not None]


def in_fold(recipe: Recipe, fold: int | None) -> Recipe:
    """The recipe on one fold of its data."""
    return recipe if fold is None else recipe.but(data__fold=fold)


def told_fold(fold: int | None) -> str:
    """The fold as a part of a job's name."""
    return "" if fold is None else f", fold {fold}"


def told(score: float | None, status: str) -> str:
    """A trial's score, or what became of it."""
    if score is None:
        return status
    return f"{score:.4f}" + (" (given up)" if status == "pruned" else "")


def hashed(parts: object) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
