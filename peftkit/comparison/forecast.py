"""The forecast of a comparison: parameters, memory and time of each variant, and the time left."""

import importlib.metadata
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.comparison.jobs import Job, JobResult, RunJob, SearchJob, hashed
from peftkit.comparison.settings import Budget, Variant
from peftkit.comparison.workers import run_in_subprocess
from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, PeftkitError, RecipeError
from peftkit.hub.source import Source
from peftkit.progress import ProgressBar
from peftkit.records.record import ParameterCount
from peftkit.registry import Settings
from peftkit.runs.learning_curves import printable
from peftkit.runtime.matmul_speed import measure_matmul_speed
from peftkit.storage.atomic_files import write_text

if TYPE_CHECKING:
    from torch import nn


class VariantForecast(Settings):
    """Parameters, memory and time of one variant's runs."""

    incompatibility: str | None = None
    """Why it cannot run."""
    parameters: ParameterCount | None = None
    memory_bytes: int | None = None
    """Estimated peak memory of a run."""
    run_seconds: float = 0.0
    """Lower bound: the time of the matrix products alone."""
    trial_seconds: float = 0.0


class Forecast(Settings):
    """The forecasts of all variants, and the rows of their runs by split."""

    rows: dict[str, int]
    notes: list[str]
    variants: dict[str, VariantForecast]


def load_forecast(
    variants: Sequence[Variant], budget: Budget, model: Source, data: Source, folder: Path
) -> Forecast:
    """The forecast that is cached in `folder`, or a new one from a process that reads and tokenizes
    the data, as each run does.

    Raises `DataError`, or `RecipeError` if no variant can run.
    """
    versions = [importlib.metadata.version(name) for name in ("peftkit", "peft", "transformers")]
    digests = [variant.recipe.digest(model, data) for variant in variants]
    key = hashed([digests, budget.model_dump(), versions])[:8]
    path = folder / f"forecast-{key}.json"
    if not path.is_file():
        forecast = run_in_subprocess(compute_forecast, variants, budget, model, data)
        write_text(path, forecast.model_dump_json(indent=1) + "\n")
    return Forecast.model_validate_json(path.read_text())


@dataclass(frozen=True)
class Workload:
    """The model, the data and the speed of the machine, which are the same for all variants."""

    model: Source
    names: tuple[str, ...]
    lengths: list[int]
    """Tokens of each training row."""
    operations_per_second: float
    precision: str


def compute_forecast(
    variants: Sequence[Variant], budget: Budget, model: Source, data: Source
) -> Forecast:
    """The forecast, from the data and the model's configuration."""
    from peftkit.loading.model import load_tokenizer
    from peftkit.preprocessing.tokenization import encode
    from peftkit.runtime.distributed import World

    recipe = variants[0].recipe
    world = World.enter(recipe.training)
    splits = recipe.splits(data)
    rows = {split: len(getattr(splits, split)) for split in ("train", "validation", "test")}
    check_rows(rows, budget)
    names = recipe.task.label_names(splits)
    examples = encode(recipe, splits, load_tokenizer(model.location, recipe.task), model, names)
    lengths = list(examples["train"]["length"])
    speed = measure_matmul_speed(world.precision)
    workload = Workload(model, tuple(names), lengths, speed, world.precision)
    found = {variant.name: forecast_variant(variant, budget, workload) for variant in variants}
    if all(each.incompatibility for each in found.values()):
        faults = [Fault(name, each.incompatibility or "") for name, each in found.items()]
        raise RecipeError("no strategy of the comparison can run:", faults)
    return Forecast(rows=rows, notes=list(splits.notes), variants=found)


def check_rows(rows: dict[str, int], budget: Budget) -> None:
    """Raise `RecipeError` for an empty validation or test split, or a budget above the rows."""
    faults = []
    if not rows["validation"] and budget.trials:
        what = (
            "learning rates are chosen on a validation split, which is empty - set data.validation"
        )
        faults.append(Fault("budget.trials", what))
    if budget.rows is not None and budget.rows > rows["train"]:
        what = f"{budget.rows:,} of {rows['train']:,} training rows - use fewer, or null for all"
        faults.append(Fault("budget.rows", what))
    if not rows["test"]:
        what = "strategies are compared on the test split, which is empty - set data.test"
        faults.append(Fault("data.test", what))
    if faults:
        raise RecipeError("the comparison cannot run:", faults)


def forecast_variant(variant: Variant, budget: Budget, workload: Workload) -> VariantForecast:
    """The forecast of one variant, or why it cannot run."""
    from peftkit.loading.model import meta_model
    from peftkit.planning.plan import estimate_memory, plan_micro_batch_size

    if variant.incompatibility is not None:
        return VariantForecast(incompatibility=variant.incompatibility)
    recipe, longest = variant.recipe, max(workload.lengths)
    try:
        module, parameters = meta_model(recipe, workload.model.location, workload.names)
        micro = plan_micro_batch_size(recipe)
        memory = estimate_memory(recipe, module, parameters, micro, longest, workload.precision)
    except PeftkitError as error:
        reasons = [fault.what for fault in error.faults] or [error.message]
        return VariantForecast(incompatibility="; ".join(reasons))
    tokens = sum(workload.lengths) * num_epochs(recipe, workload)
    seconds = operations_per_token(module) * tokens / workload.operations_per_second
    return VariantForecast(
        parameters=parameters,
        memory_bytes=memory.total,
        run_seconds=seconds,
        trial_seconds=seconds * (budget.rows or len(workload.lengths)) / len(workload.lengths),
    )


def num_epochs(recipe: Recipe, workload: Workload) -> float:
    """How often a run reads the train split."""
    training = recipe.training
    if training.steps is None:
        return training.epochs
    return training.steps * training.batch_size / len(workload.lengths)


def operations_per_token(module: "nn.Module") -> int:
    """Floating-point operations of a training step per token, matrix products alone.

    For each weight of the blocks two forward, two backward if a gradient passes through its block,
    and two for the gradient of a trained weight.
    """
    from peftkit.models.architectures import blocks_of, runs_per_block
    from peftkit.planning.plan import blocks_with_gradient
    from peftkit.strategies.base import trainable

    blocks = blocks_of(module)
    weights = sum(p.numel() for _, block in blocks for p in block.parameters())
    weights *= runs_per_block(module)
    share = min(1.0, blocks_with_gradient(module) / max(len(blocks) * runs_per_block(module), 1))
    trained = sum(parameter.numel() for parameter in trainable(module).values())
    return int(2 * weights + 2 * weights * share + 2 * min(trained, weights))


class JobProgress:
    """A progress bar on a terminal, else a line per job; a context manager."""

    def __init__(self, jobs: Sequence[Job], forecast: Forecast) -> None:
        self.forecast = forecast
        self.left = {job.name: job for job in jobs if not job.done}
        self.total, self.done = len(self.left), 0
        self._forecast_seconds = 0.0
        self._started = time.monotonic()
        self._bar = ProgressBar("comparing", time="elapsed")

    def __enter__(self) -> "JobProgress":
        self._bar.start(self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, job: Job, result: JobResult) -> None:
        """Show the result of a job and the estimated time of the others."""
        self.left.pop(job.name, None)
        self.done += 1
        self._forecast_seconds += self.min_seconds(job)
        left = self.time_left()
        failed = "failed: " if result.state == "failed" else ""
        line = printable(f"{job.name}: {failed}{result.message}")
        if self._bar.is_shown:
            self._bar.print(line)
            self._bar.update(self.done, left)
        else:
            self._bar.print(f"[{self.done}/{self.total}] {line}; {left}")

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
    progress = JobProgress(jobs, forecast)
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
