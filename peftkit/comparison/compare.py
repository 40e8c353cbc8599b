"""Compare strategies: tune each on the same budget, train it with each seed, report the runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftkit.comparison.forecast import (
    Forecast,
    JobProgress,
    load_forecast,
    plan_rows,
    time_estimate,
)
from peftkit.comparison.jobs import (
    Job,
    RunJob,
    SearchJob,
    Workspace,
    incompatible_jobs,
    planned_jobs,
)
from peftkit.comparison.settings import LoadedComparison, load_comparison
from peftkit.comparison.workers import WorkerPool, visible_gpus
from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.reporting.report import Report, report
from peftkit.runtime.distributed import say
from peftkit.storage.atomic_files import explain_disk_errors
from peftkit.tables import print_rows


def compare(
    file: Path | str,
    *settings: str,
    runs: Path = Path("runs"),
    to: Path | None = None,
    workers: int | None = None,
    retry: bool = False,
    allow_mixed: bool = False,
) -> Report:
    """Run the comparison in `file` and write its report.

    `settings` are `key=value` overrides of the comparison or its recipe. Recorded runs are not
    repeated, interrupted ones are resumed, and failed ones are repeated with `retry`. The directory
    of the comparison is `runs`/NAME, which several processes may share (see `join`); the report is
    written to `to`, by default a directory in it. `workers` runs train at a time (default: one per
    GPU, or one). Runs on different machines or library versions are reported together only with
    `allow_mixed`. Raises `PeftkitError`.
    """
    project = Project.of(Path(file), settings, Path(runs), workers)
    project.print_plan()
    project.run(retry)
    made = project.report(allow_mixed)
    made.write(to or project.root / "report")
    return made


def join(
    file: Path | str,
    *settings: str,
    runs: Path = Path("runs"),
    workers: int | None = None,
    retry: bool = False,
) -> None:
    """Share the runs of a comparison with another process, on this machine or on one that sees the
    same directory, until none is left; no run is done twice."""
    Project.of(Path(file), settings, Path(runs), workers).run(retry)


@dataclass(frozen=True)
class Project:
    """A comparison with its directory, its jobs and their forecast."""

    root: Path
    loaded: LoadedComparison
    forecast: Forecast
    jobs: tuple[Job, ...]
    incompatible: tuple[RunJob, ...]
    workers: int

    @classmethod
    def of(cls, file: Path, settings: Sequence[str], runs: Path, workers: int | None) -> "Project":
        """The comparison in `file`; reads its data and counts the parameters of its variants."""
        loaded = load_comparison(file, settings)
        count = workers or max(1, len(visible_gpus()))
        recipe = loaded.variants[0].recipe
        model, data = find_model(recipe.model), recipe.data.resolve()
        root = runs / loaded.name
        with explain_disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            budget = loaded.comparison.budget
            forecast = load_forecast(loaded.variants, budget, model, data, root)
        variants = [
            replace(
                variant,
                recipe=variant.recipe.but(training__threads=num_threads(variant.recipe, count)),
                incompatibility=forecast.variants[variant.name].incompatibility,
            )
            for variant in loaded.variants
        ]
        workspace = Workspace(root, model, data, forecast.rows)
        jobs = planned_jobs(variants, loaded.comparison, workspace)
        incompatible = incompatible_jobs(variants, loaded.comparison, workspace)
        return cls(root, loaded, forecast, tuple(jobs), tuple(incompatible), count)

    def print_plan(self) -> None:
        """Print the runs of each variant and the time that they need."""
        for note in self.forecast.notes:
            say(None, f"note: {note}")
        if self.loaded.added:
            say(None, f"added to every comparison: {', '.join(self.loaded.added)}")
        print_rows(plan_rows(self.jobs, self.forecast))
        say(None, time_estimate(self.jobs, self.forecast, self.workers))

    def run(self, retry: bool = False) -> None:
        """Run all jobs that are not done; the learning rates are chosen before the first run.

        Raises `RunStopped` after a signal.
        """
        for job in self.incompatible:
            reason = self.forecast.variants[job.variant.name].incompatibility
            job.record_failure(reason or "")
        runs = [job for job in self.jobs if isinstance(job, RunJob)]
        if retry:
            remove_failures(runs)
        with (
            JobProgress(self.jobs, self.forecast) as progress,
            WorkerPool(self.workers, self.root / "output", progress.update) as pool,
        ):
            pool.run([job for job in self.jobs if isinstance(job, SearchJob)])
            for job in runs:
                if job.search is not None and (reason := pool.failures.get(job.search.name)):
                    replace(job, search=None).record_failure(reason)
            pool.run([job for job in runs if job.search is None or job.search.done])

    def report(self, allow_mixed: bool = False) -> Report:
        """The report of all runs, the failed and the incompatible ones among them."""
        runs = [job for job in self.jobs if isinstance(job, RunJob)]
        failed = [replace(job, search=None) for job in runs if job.search and not job.search.done]
        found = [job.run_dir.path for job in (*runs, *failed, *self.incompatible) if job.done]
        comparison = self.loaded.comparison
        return report(found, comparison.reference, None, comparison.margin, allow_mixed)


def num_threads(recipe: Recipe, workers: int) -> int | str:
    """The threads of a run: its share of the cores if several runs train at a time."""
    if recipe.training.threads != "auto" or workers == 1:
        return recipe.training.threads
    return max(1, (os.cpu_count() or 1) // workers)


def remove_failures(runs: Sequence[RunJob]) -> None:
    """Delete the records of failed runs, so that they run again."""
    for job in runs:
        if job.done and job.record is not None and job.record.status == "failed":
            (job.run_dir.path / "record.json").unlink()
