"""The jobs of a comparison: learning-rate searches and runs, each done by one process."""

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

from peftkit.comparison.settings import Budget, Comparison, Variant
from peftkit.config.recipe import Recipe
from peftkit.errors import DiskError, PeftkitError, RunBusy, RunStopped
from peftkit.hub.source import Source
from peftkit.records.record import RunRecord, Tuning
from peftkit.records.run_dir import RunDir, is_held
from peftkit.runtime.distributed import versions
from peftkit.storage.atomic_files import explain_disk_errors, write_text

State = Literal["done", "failed", "busy", "stopped", "disk error"]


class JobResult(NamedTuple):
    """How a job ended in its process."""

    state: State
    message: str


@dataclass(frozen=True)
class Workspace:
    """The directory of a comparison, and the model and data of its runs."""

    root: Path
    model: Source
    data: Source
    rows: dict[str, int]
    """Examples of the runs by split."""


@dataclass(frozen=True)
class SearchJob:
    """The search for one variant's learning rate."""

    variant: Variant
    budget: Budget
    workspace: Workspace
    fold: int | None = None

    @property
    def name(self) -> str:
        """Its name in the progress and in file names."""
        return f"learning rate of {self.variant.name}{fold_suffix(self.fold)}"

    @property
    def recipe(self) -> Recipe:
        """The recipe of the runs, without a learning rate."""
        return with_fold(self.variant.recipe, self.fold)

    @property
    def path(self) -> Path:
        """The file of the result, which exists once the job is done."""
        return self.workspace.root / "rates" / f"{self.variant.name}-{self.key[:8]}.json"

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on."""
        recipe = self.recipe.digest(self.workspace.model, self.workspace.data)
        return hashed([recipe, self.budget.model_dump(), self.workspace.rows])

    @property
    def done(self) -> bool:
        """Whether the learning rate is chosen."""
        return self.path.is_file()

    @property
    def lock(self) -> FileLock:
        """The lock of the process that searches."""
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    @property
    def taken(self) -> bool:
        """Whether a process is searching."""
        return self.path.parent.is_dir() and is_held(self.lock)

    @property
    def result(self) -> Tuning:
        """The trials and the learning rate that was chosen."""
        return Tuning.model_validate_json(self.path.read_text())

    def work(self) -> str:
        """Search in this process; a summary. Raises `RunBusy` if another process does."""
        from peftkit.comparison.tuning import LearningRateSearch

        workspace, lock = self.workspace, self.lock
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunBusy(f"{self.name}: another process is searching") from None
        try:
            search = LearningRateSearch(self.recipe, self.budget, workspace.rows, workspace.root)
            with explain_disk_errors(workspace.root):
                found = search.run(workspace.model, workspace.data)
                write_text(self.path, found.model_dump_json(indent=1) + "\n")
        finally:
            lock.release()
        trials = ", ".join(f"{t.lr:g} {format_trial(t.score, t.status)}" for t in found.trials)
        return f"{found.chosen:g} ({found.metric} on the validation split: {trials})"


@dataclass(frozen=True)
class RunJob:
    """One run: a variant with a seed."""

    variant: Variant
    seed: int
    search: SearchJob | None
    """The search that must be done before; None: the strategy's default learning rate."""
    workspace: Workspace
    fold: int | None = None
    reloads: bool = True
    """Whether its artifact is loaded in a fresh process for the proof, which takes seconds: one run
    per variant is enough."""

    @property
    def name(self) -> str:
        """Its name in the progress and in file names."""
        return f"{self.variant.name}, seed {self.seed}{fold_suffix(self.fold)}"

    @property
    def run_dir(self) -> RunDir:
        """Its directory; needs the learning rate."""
        workspace = self.workspace
        return RunDir.of(workspace.root / "runs", self.recipe, workspace.model, workspace.data)

    @property
    def recipe(self) -> Recipe:
        """Its recipe, with the learning rate that was chosen."""
        changes: dict[str, object] = {"training__seed": self.seed}
        if (
            self.search is not None
            and (lr := self.search.result.chosen) != self.variant.recipe.lr()
        ):
            changes["training__lr"] = lr
        if not self.reloads:
            changes["training__proof"] = "run"
        return with_fold(self.variant.recipe, self.fold).but(**changes)

    @property
    def done(self) -> bool:
        """Whether it has a record, be it of a failure."""
        return (self.search is None or self.search.done) and self.record is not None

    @property
    def taken(self) -> bool:
        """Whether a process is training it."""
        return self.run_dir.taken

    @property
    def record(self) -> RunRecord | None:
        """Its record; None if there is none or it is damaged."""
        try:
            return self.run_dir.record
        except (PeftkitError, ValidationError):
            return None

    def work(self) -> str:
        """Train, score and record in this process; a summary. Raises as `train` does."""
        from peftkit.runs.runner import train

        tuning = self.search.result if self.search is not None else None
        record = train(self.recipe, self.workspace.root / "runs", tuning=tuning)
        score, cost = record.scores.get(record.headline), record.cost
        seconds = "" if cost is None else f", {cost.total_seconds:,.0f} s"
        if score is None or score.value is None:
            return f"no score{seconds}"
        interval = "" if score.low is None else f" [{score.low:.4f}, {score.high:.4f}]"
        return f"{record.headline} {score.value:.4f}{interval}{seconds}"

    def record_failure(self, reason: str) -> None:
        """Write a record with the reason, unless the run has written one itself."""
        if self.record is not None:
            return
        workspace, recipe, run_dir = self.workspace, self.recipe, self.run_dir
        run_dir.path.parent.mkdir(parents=True, exist_ok=True)
        run_dir.begin(recipe, workspace.model, workspace.data)
        run_dir.finish(
            RunRecord(
                name=recipe.name,
                digest=recipe.digest(workspace.model, workspace.data),
                status="failed",
                reason=reason,
                recipe=recipe.settings(),
                model=workspace.model,
                data=workspace.data,
                rows=workspace.rows,
                notes=[],
                headline=recipe.task.headline,
                tuning=self.search.result if self.search is not None else None,
                versions=versions(),
                finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        )


Job = SearchJob | RunJob


def run_job(job: Job) -> JobResult:
    """Run a job in this process; its errors are part of the result."""
    try:
        return JobResult("done", job.work())
    except RunBusy as busy:
        return JobResult("busy", str(busy))
    except RunStopped as stopped:
        return JobResult("stopped", str(stopped))
    except DiskError as error:
        return JobResult("disk error", str(error))
    except PeftkitError as error:
        return JobResult("failed", " ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()  # into the job's log, whose path is in the message
        return JobResult("failed", f"{type(error).__name__}: {error} (a bug in peftkit)")


def planned_jobs(
    variants: Sequence[Variant], comparison: Comparison, workspace: Workspace
) -> list[Job]:
    """All searches, then all runs, ordered by seed."""
    compatible = [variant for variant in variants if variant.incompatibility is None]
    searches: dict[tuple[str, int | None], SearchJob] = {}
    if comparison.budget.trials:
        searches = {
            (variant.name, fold): SearchJob(variant, comparison.budget, workspace, fold)
            for fold in dict.fromkeys(fold for _, fold in comparison.seeds_and_folds)
            for variant in compatible
        }
    runs = [
        RunJob(
            variant, seed, searches.get((variant.name, fold)), workspace, fold, reloads=not number
        )
        for number, (seed, fold) in enumerate(comparison.seeds_and_folds)
        for variant in compatible
    ]
    return [*searches.values(), *runs]


def incompatible_jobs(
    variants: Sequence[Variant], comparison: Comparison, workspace: Workspace
) -> list[RunJob]:
    """One run per variant that cannot run: it is recorded as failed, so that it is reported."""
    seed, fold = comparison.seeds_and_folds[0]
    return [RunJob(v, seed, None, workspace, fold) for v in variants if v.incompatibility]


def with_fold(recipe: Recipe, fold: int | None) -> Recipe:
    """The recipe on one fold of its data."""
    return recipe if fold is None else recipe.but(data__fold=fold)


def fold_suffix(fold: int | None) -> str:
    """The fold as the end of a job's name."""
    return "" if fold is None else f", fold {fold}"


def format_trial(score: float | None, status: str) -> str:
    """A trial's score, or its status if it has none."""
    if score is None:
        return status
    return f"{score:.4f}" + (" (pruned)" if status == "pruned" else "")


def hashed(parts: object) -> str:
    """The SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
