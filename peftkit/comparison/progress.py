"""Progress: one view of a whole comparison, with the time that is left."""

import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from peftkit.comparison.forecast import Outlook
from peftkit.comparison.jobs import Job, Outcome, RateJob, RunJob
from peftkit.runs.learning_curves import printable


class Progress:
    """A bar on a terminal, a line a job elsewhere; to be used in a `with` statement."""

    def __init__(self, jobs: Sequence[Job], outlook: Outlook) -> None:
        self.outlook = outlook
        self.left = {job.name: job for job in jobs if not job.done}
        self.total, self.done = len(self.left), 0
        self.expected = 0.0
        self._begun = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            progress = importlib.import_module("rich.progress")
            console = importlib.import_module("rich.console").Console(stderr=True)
            self._bar = progress.Progress(
                progress.TextColumn("comparing"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[left]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=self.total, left="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Show what became of a job, and how long the rest may take."""
        self.left.pop(job.name, None)
        self.done += 1
        self.expected += self.least(job)
        ahead = self.ahead()
        said = f"{job.name}: {'failed: ' if outcome.state == 'failed' else ''}{outcome.said}"
        if self._bar is not None:
            self._bar.console.print(printable(said), highlight=False, markup=False)
            self._bar.update(self._task, completed=self.done, left=ahead)
            return
        print(f"[{self.done}/{self.total}] {printable(said)}; {ahead}", file=sys.stderr, flush=True)

    def least(self, job: Job) -> float:
        """Seconds that a job takes at least: what the others are weighed by."""
        prospect = self.outlook.prospects[job.way.name]
        if isinstance(job, RateJob):
            return prospect.trial_seconds * job.budget.trials
        return prospect.run_seconds

    def ahead(self) -> str:
        """How many jobs are left and, going by those that are done, how long they may take."""
        self.left = {name: job for name, job in self.left.items() if not job.done}
        if not self.left:
            return "all done"
        rest = sum(map(self.least, self.left.values()))
        seconds = (time.monotonic() - self._begun) * rest / max(self.expected, 1e-9)
        return f"{len(self.left)} left, about {spoken(seconds)}"


def spoken(seconds: float) -> str:
    """A time in words, no more exact than it is known."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def plan_rows(jobs: Sequence[Job], outlook: Outlook) -> list[dict[str, str]]:
    """A row a strategy: its runs, what of them is recorded, and what they will take."""
    rows = []
    for name, prospect in outlook.prospects.items():
        own = [job for job in jobs if job.way.name == name]
        runs = [job for job in own if isinstance(job, RunJob)]
        trials = sum(job.budget.trials for job in own if isinstance(job, RateJob))
        counted, memory = prospect.parameters, prospect.memory_bytes
        rows.append(
            {
                "strategy": name,
                "runs": f"{len(runs)} runs",
                "recorded": f"{sum(job.done for job in runs)} recorded",
                "trials": f"{trials} rates",
                "trainable": "" if counted is None else f"{counted.trainable:,} trainable",
                "memory": "" if memory is None else f"about {memory / 2**20:,.0f} MiB",
                "refused": "" if prospect.refused is None else f"refused: {prospect.refused}",
            }
        )
    return rows


def time_told(jobs: Sequence[Job], outlook: Outlook, workers: int) -> str:
    """How long a comparison will take at least, or as long as such runs took."""
    progress = Progress(jobs, outlook)
    left = list(progress.left.values())
    if not left:
        return "nothing is left to run"
    least = sum(map(progress.least, left)) / workers
    said = f"{len(left)} jobs left, {workers} at a time: "
    ratios = [
        job.record.cost.total_seconds / progress.least(job)
        for job in jobs
        if isinstance(job, RunJob) and job.done and job.record and job.record.cost
    ]
    if ratios:
        typical = statistics.median(ratios)
        return f"{said}about {spoken(least * typical)}, as the recorded ones took"
    return f"{said}at least {spoken(least)}, by this machine's products of matrices alone"
