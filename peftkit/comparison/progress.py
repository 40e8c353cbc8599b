"""The progress of a comparison: its plan as a table, then the finished jobs and the time left."""

import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from peftkit.comparison.forecast import Forecast
from peftkit.comparison.jobs import Job, JobResult, RunJob, SearchJob
from peftkit.runs.learning_curves import printable


class Progress:
    """A progress bar on a terminal, else a line per job; a context manager."""

    def __init__(self, jobs: Sequence[Job], forecast: Forecast) -> None:
        self.forecast = forecast
        self.left = {job.name: job for job in jobs if not job.done}
        self.total, self.done = len(self.left), 0
        self._forecast_seconds = 0.0
        self._started = time.monotonic()
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

    def update(self, job: Job, result: JobResult) -> None:
        """Show the result of a job and the estimated time of the others."""
        self.left.pop(job.name, None)
        self.done += 1
        self._forecast_seconds += self.min_seconds(job)
        left = self.time_left()
        failed = "failed: " if result.state == "failed" else ""
        line = printable(f"{job.name}: {failed}{result.message}")
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
            self._bar.update(self._task, completed=self.done, left=left)
        else:
            print(f"[{self.done}/{self.total}] {line}; {left}", file=sys.stderr, flush=True)

    def min_seconds(self, job: Job) -> float:
        """The lower bound of a job's time, as the weight of the job."""
        forecast = self.forecast.variants[job.variant.name]
        if isinstance(job, SearchJob):
            return forecast.trial_seconds * job.budget.trials
        return forecast.run_seconds

    def time_left(self) -> str:
        """The number of jobs left and their time, estimated from the finished ones."""
        self.left = {name: job for name, job in self.left.items() if not job.done}
        if not self.left:
            return "all done"
        left = sum(map(self.min_seconds, self.left.values()))
        elapsed = time.monotonic() - self._started
        seconds = elapsed * left / max(self._forecast_seconds, 1e-9)
        return f"{len(self.left)} left, about {format_duration(seconds)}"


def format_duration(seconds: float) -> str:
    """A duration in s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def plan_rows(jobs: Sequence[Job], forecast: Forecast) -> list[dict[str, str]]:
    """A table row per variant: its runs, how many are recorded, and its forecast."""
    rows = []
    for name, variant in forecast.variants.items():
        own = [job for job in jobs if job.variant.name == name]
        runs = [job for job in own if isinstance(job, RunJob)]
        trials = sum(job.budget.trials for job in own if isinstance(job, SearchJob))
        counted, memory, reason = variant.parameters, variant.memory_bytes, variant.incompatibility
        rows.append(
            {
                "strategy": name,
                "runs": f"{len(runs)} runs",
                "recorded": f"{sum(job.done for job in runs)} recorded",
                "trials": f"{trials} trials",
                "trainable": "" if counted is None else f"{counted.trainable:,} trainable",
                "memory": "" if memory is None else f"about {memory / 2**20:,.0f} MiB",
                "incompatible": "" if reason is None else f"cannot run: {reason}",
            }
        )
    return rows


def time_estimate(jobs: Sequence[Job], forecast: Forecast, workers: int) -> str:
    """The time that a comparison needs: from recorded runs, else the forecast's lower bound."""
    progress = Progress(jobs, forecast)
    left = list(progress.left.values())
    if not left:
        return "all runs are recorded: nothing to do"
    seconds = sum(map(progress.min_seconds, left)) / workers
    what = f"{len(left)} jobs left, {workers} at a time"
    ratios = [
        job.record.cost.total_seconds / progress.min_seconds(job)
        for job in jobs
        if isinstance(job, RunJob) and job.done and job.record and job.record.cost
    ]
    if ratios:
        seconds *= statistics.median(ratios)
        return f"{what}: about {format_duration(seconds)}, estimated from the recorded runs"
    return f"{what}: at least {format_duration(seconds)}, for the matrix products alone"
