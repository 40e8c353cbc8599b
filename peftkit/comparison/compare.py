"""Comparing: strategies held against each other, each tuned alike, and what they come to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftkit.comparison.forecast import Outlook, look
from peftkit.comparison.jobs import Job, Place, RateJob, RunJob, jobs_of, refused_jobs
from peftkit.comparison.progress import Progress, plan_rows, time_told
from peftkit.comparison.settings import Ways, load_comparison
from peftkit.comparison.workers import Crew, gpus
from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.reporting.report import Report, report
from peftkit.runtime.distributed import say
from peftkit.storage.atomic_files import writing
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
    """Run the comparison that `file` describes, and report it into `to`.

    `settings` are `key=value`s of the comparison or its recipe. What has a record is not run again,
    what was interrupted goes on, what failed is tried again where `retry` says so. Its folder is
    `runs`/NAME, which other processes may share (`join`); the report goes to `to`, by default into
    it. `workers` run at a time: by default one a GPU, or one. Runs of unlike machines or library
    versions stand in one table only where `allow_mixed` says so. Raises `PeftkitError`.
    """
    project = Project.of(Path(file), settings, Path(runs), workers)
    project.tell()
    project.work(retry)
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
    """Help with a comparison that another process has begun, on this machine or on another that
    sees the same folder, until nothing is left; no run is done twice."""
    Project.of(Path(file), settings, Path(runs), workers).work(retry)


@dataclass(frozen=True)
class Project:
    """A comparison on its way: what is to be done, and where."""

    root: Path
    asked: Ways
    outlook: Outlook
    jobs: tuple[Job, ...]
    refused: tuple[RunJob, ...]
    workers: int

    @classmethod
    def of(cls, file: Path, settings: Sequence[str], runs: Path, workers: int | None) -> "Project":
        """The comparison of `file`, its data read and its strategies counted."""
        asked = load_comparison(file, settings)
        count = workers or max(1, len(gpus()))
        recipe = asked.ways[0].recipe
        model, data = find_model(recipe.model), recipe.data.resolve()
        root = runs / asked.name
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            outlook = look(asked.ways, asked.comparison.budget, model, data, root)
        ways = [
            replace(
                way,
                recipe=way.recipe.but(training__threads=threads_of(way.recipe, count)),
                refused=outlook.prospects[way.name].refused,
            )
            for way in asked.ways
        ]
        place = Place(root, model, data, outlook.rows)
        jobs = jobs_of(ways, asked.comparison, place)
        refused = refused_jobs(ways, asked.comparison, place)
        return cls(root, asked, outlook, tuple(jobs), tuple(refused), count)

    def tell(self) -> None:
        """Say what will be done before it is."""
        for note in self.outlook.notes:
            say(None, f"note: {note}")
        if self.asked.added:
            say(None, f"every comparison has {' and '.join(self.asked.added)} too")
        print_rows(plan_rows(self.jobs, self.outlook))
        say(None, time_told(self.jobs, self.outlook, self.workers))

    def work(self, retry: bool = False) -> None:
        """Do all that is not done, here or elsewhere: every rate is chosen before the first run.

        Raises `RunStopped` after a signal.
        """
        for job in self.refused:
            job.record_failure(self.outlook.prospects[job.way.name].refused or "")
        runs = [job for job in self.jobs if isinstance(job, RunJob)]
        if retry:
            forget_failures(runs)
        with (
            Progress(self.jobs, self.outlook) as progress,
            Crew(self.workers, self.root / "output", progress.tell) as crew,
        ):
            crew.do([job for job in self.jobs if isinstance(job, RateJob)])
            for job in runs:
                if job.rate is not None and (reason := crew.failures.get(job.rate.name)):
                    replace(job, rate=None).record_failure(reason)
            crew.do([job for job in runs if job.rate is None or job.rate.done])

    def report(self, allow_mixed: bool = False) -> Report:
        """All runs of the comparison side by side, those that failed or were refused too."""
        runs = [job for job in self.jobs if isinstance(job, RunJob)]
        failed = [replace(job, rate=None) for job in runs if job.rate and not job.rate.done]
        found = [job.folder.path for job in (*runs, *failed, *self.refused) if job.done]
        comparison = self.asked.comparison
        return report(found, comparison.reference, None, comparison.margin, allow_mixed)


def threads_of(recipe: Recipe, workers: int) -> int | str:
    """A run's threads: its share of the cores where several runs are made at a time."""
    if recipe.training.threads != "auto" or workers == 1:
        return recipe.training.threads
    return max(1, (os.cpu_count() or 1) // workers)


def forget_failures(runs: Sequence[RunJob]) -> None:
    """Let runs that failed be tried again."""
    for job in runs:
        if job.done and job.record is not None and job.record.status == "failed":
            (job.folder.path / "record.json").unlink()
