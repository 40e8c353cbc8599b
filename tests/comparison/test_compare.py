"""Comparisons from start to report: resumed after kills, shared by workers, no run done twice."""

import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from peftkit.comparison.jobs import JobResult
from peftkit.comparison.settings import Budget, load_comparison
from peftkit.comparison.tuning import LearningRateSearch, choose_pruner, margin_pruner
from peftkit.comparison.workers import ATTEMPTS, WorkerPool
from peftkit.hub.resolve import find_model
from peftkit.records.record import RunRecord, read_record
from peftkit.records.run_dir import RunDir
from peftkit.reporting.report import Report
from support.commands import peftkit
from support.run_processes import ENVIRONMENT

FILE = """
recipe: lora_tiny
settings:
  data: {rows: 120}
  training: {epochs: 1, batch_size: 8, threads: 1, proof: run, save_steps: 2}
strategies: [full, lora, linear_probe]
seeds: 2
budget: {trials: 2, rows: 64}
"""
JOBS = 3 + 3 * 2
"""Searches and runs."""


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """`peftkit compare` in its own process group, as a shell starts it."""
    (folder / "small.yaml").write_text(FILE)
    return subprocess.Popen(
        [sys.executable, "-m", "peftkit.cli", "compare", "small.yaml", *options],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output_of(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def records(folder: Path) -> dict[str, RunRecord]:
    found = (folder / "runs" / "small" / "runs").glob("*/record.json")
    return {path.parent.name: read_record(path) for path in found}


def result(folder: Path) -> dict[str, Any]:
    """The results that do not depend on interruptions: no times, no memory."""
    return {
        name: (
            record.status,
            record.scores,
            record.validation,
            record.tuning,
            record.steps,
            record.recipe,
            (folder / "runs/small/runs" / name / "predictions.jsonl").read_text(),
        )
        for name, record in records(folder).items()
    }


def finished_jobs(output: str) -> list[str]:
    """The names of the jobs in the output of a process."""
    return re.findall(r"^\[\d+/\d+\] (.+?): ", output, re.MULTILINE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory and the output of a comparison that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, output_of(start(folder))


@pytest.mark.slow
def test_a_comparison_runs_from_its_file_to_the_report(uninterrupted: tuple[Path, str]) -> None:
    folder, output = uninterrupted
    found = records(folder)
    assert len(found) == 6
    assert {record.status for record in found.values()} == {"finished"}
    report = folder / "runs" / "small" / "report"
    made = Report.model_validate_json((report / "report.json").read_text())
    assert {each.label: each.seeds for each in made.strategies} == {
        "full": [0, 1],
        "lora": [0, 1],
        "linear_probe": [0, 1],
    }
    assert "<html" in (report / "report.html").read_text()
    assert len(finished_jobs(output)) == JOBS
    assert made.verdict[0] in output


@pytest.mark.slow
def test_learning_rates_are_chosen_before_any_run_without_a_test_score(
    uninterrupted: tuple[Path, str],
) -> None:
    folder, output = uninterrupted
    order = [job.startswith("learning rate of") for job in finished_jobs(output)]
    assert order == sorted(order, reverse=True)
    for record in records(folder).values():
        assert record.tuning is not None
        rates = [trial.lr for trial in record.tuning.trials]
        assert len(rates) == 2 and record.tuning.trials[0].default
        assert record.tuning.chosen in rates
        best = max(trial.score or 0.0 for trial in record.tuning.trials)
        chosen = next(t for t in record.tuning.trials if t.lr == record.tuning.chosen)
        assert chosen.score == best
    left = list((folder / "runs" / "small" / "trials").glob("*/*"))
    assert not left  # trials leave no predictions


@pytest.mark.slow
def test_recorded_runs_are_not_repeated(uninterrupted: tuple[Path, str]) -> None:
    folder, _ = uninterrupted
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("record.json")}
    output = output_of(start(folder))
    assert finished_jobs(output) == []
    assert "nothing to do" in output
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("record.json")} == before


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_records(
    uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    moments = random.Random(6)
    for _ in range(10):
        process = start(tmp_path)
        # from the first imports into the runs: without a kill they take about a minute
        time.sleep(moments.uniform(1.0, 16.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    output_of(start(tmp_path))
    assert result(tmp_path) == result(uninterrupted[0])


@pytest.mark.slow
def test_two_workers_share_the_runs_and_do_none_twice(
    uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    both = [start(tmp_path), start(tmp_path, "--join")]
    done = [finished_jobs(output_of(process)) for process in both]
    assert sorted(done[0] + done[1]) == sorted(set(done[0] + done[1]))
    assert len(done[0] + done[1]) == JOBS
    assert result(tmp_path) == result(uninterrupted[0])


@pytest.mark.slow
def test_a_dead_workers_run_is_taken_over(uninterrupted: tuple[Path, str], tmp_path: Path) -> None:
    first = start(tmp_path)
    running = tmp_path / "runs" / "small" / "runs"
    deadline = time.monotonic() + 120
    while not list(running.glob("*/run.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start(tmp_path, "--join")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output_of(second)
    assert result(tmp_path) == result(uninterrupted[0])


@pytest.mark.slow
def test_a_signal_stops_it_with_a_checkpoint_and_says_how_to_continue(tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs" / "small" / "trials").glob("*/log.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "run the same command to continue" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_full_disk_stops_it_without_losing_anything(
    uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(FILE)
    full = subprocess.run(
        [sys.executable, "-m", "peftkit.cli", "compare", "small.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        # enough for what little is written before a checkpoint, and not for one
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (196_500, 196_500)),
    )
    assert full.returncode == 2, full.stderr
    assert "cannot be written" in full.stderr and "the same command" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "runs").rglob("record.json"))  # it is not recorded as failed
    output_of(start(tmp_path))
    assert result(tmp_path) == result(uninterrupted[0])


@pytest.mark.slow
def test_a_strategy_that_is_incompatible_with_the_model_is_reported_with_the_reason(
    tmp_path: Path,
) -> None:
    entries = "strategies: [full, {kind: lora, targets: [qurry]}]"
    text = FILE.replace("strategies: [full, lora, linear_probe]", entries)
    (tmp_path / "odd.yaml").write_text(text)
    ended = peftkit(
        "compare", "odd.yaml", "seeds=1", "budget.trials=0", "--workers", "2", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "cannot run: " in ended.stdout
    report = tmp_path / "runs" / "odd" / "report" / "report.json"
    made = Report.model_validate_json(report.read_text())
    row = next(each for each in made.strategies if each.strategy == "lora")
    assert row.status == "failed"
    assert "qurry" in row.failures[0].reason


def test_the_plan_lists_the_runs_and_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(FILE)
    ended = peftkit("compare", "small.yaml", "--plan", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "full\t2 runs\t0 recorded\t2 trials\t93,954 trainable" in ended.stdout
    assert "9 jobs left" in ended.stderr
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("budget.rows=5000", "use fewer"),
        ("data.path=nowhere", "data.path"),
        ("seeds=[0,0]", "a seed is listed twice"),
    ],
)
def test_mistakes_print_one_message(tmp_path: Path, setting: str, expected: str) -> None:
    (tmp_path / "small.yaml").write_text(FILE)
    ended = peftkit("compare", "small.yaml", setting, cwd=tmp_path)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def search(folder: Path, **budget: Any) -> LearningRateSearch:
    (folder / "small.yaml").write_text(FILE)
    recipe = load_comparison(folder / "small.yaml").variants[1].recipe
    rows = {"train": 84, "validation": 12, "test": 24}
    return LearningRateSearch(recipe, Budget(**budget), rows, folder)


def test_learning_rates_are_spaced_around_the_default_of_the_strategy(tmp_path: Path) -> None:
    default = search(tmp_path).recipe.strategy.default_lr
    rates = search(tmp_path, trials=5).rates()
    assert rates[0] == default
    assert rates == pytest.approx([default * f for f in (1, 3, 1 / 3, 9, 1 / 9)], rel=0.05)


def test_trials_are_scored_on_the_validation_rows_of_the_runs(tmp_path: Path) -> None:
    recipe = search(tmp_path, rows=64).trial_recipe(0.01)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    assert (len(splits.train), len(splits.validation)) == (64, 12)
    assert recipe.training.seed == Budget().seed
    assert recipe.training.evaluate == 2  # eight steps, four evaluations


def study_with(*finished: dict[int, float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize", pruner=margin_pruner(rows=200))
    for number, values in enumerate(finished, 1):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(number, number)})
        for step, value in values.items():
            trial.report(value, step)
        study.tell(trial, max(values.values()))
    return study


@pytest.mark.parametrize(
    ("value", "pruned"), [(0.85, False), (0.75, False), (0.69, True), (math.nan, False)]
)
def test_a_trial_is_pruned_only_when_it_is_far_below(value: float, pruned: bool) -> None:
    study = study_with({10: 0.8, 20: 0.85}, {10: 0.7, 20: 0.86})
    trial = study.ask({"lr": optuna.distributions.FloatDistribution(9, 9)})
    trial.report(value, 10)  # two standard errors of a difference at 200 rows are 0.1
    assert trial.should_prune() == pruned


def test_the_first_trial_is_never_pruned() -> None:
    study = study_with()
    trial = study.ask({"lr": optuna.distributions.FloatDistribution(9, 9)})
    trial.report(0.01, 10)
    assert not trial.should_prune()


@pytest.mark.parametrize(
    ("task", "best"), [("{kind: regression, metric: rmse}", 0), ("text_classification", 2)]
)
def test_the_learning_rate_with_the_better_score_is_chosen_for_metrics_of_either_direction(
    task: str, best: int, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(FILE)
    recipe = load_comparison(tmp_path / "small.yaml", [f"task={task}"]).variants[1].recipe
    found = LearningRateSearch(recipe, Budget(trials=3), {"train": 84, "validation": 12}, tmp_path)
    study, rates = found.study("digest"), found.rates()
    for rate, score in zip(rates, (0.3, 0.5, 0.7), strict=True):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(rate, rate)})
        trial.set_user_attr("score", score)
        study.tell(trial, score)
    tuning = found.result(study)
    assert tuning.chosen == rates[best] and tuning.metric == recipe.task.validation_metric
    assert study.best_trial.number == best


def test_only_trials_scored_by_a_proportion_are_pruned() -> None:
    for metric in ("bits_per_byte", "rmse[price]", "spearman", "chrf"):
        assert isinstance(choose_pruner(metric, 200), optuna.pruners.NopPruner)
    for metric in ("accuracy", "f1", "f1[PER]"):
        assert not isinstance(choose_pruner(metric, 200), optuna.pruners.NopPruner)


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_and_the_default_is_kept(tmp_path: Path) -> None:
    found = search(tmp_path, trials=2, rows=64, factor=1e9)
    model, data = find_model(found.recipe.model), found.recipe.data.resolve()
    tuning = found.run(model, data)
    assert next(trial.status for trial in tuning.trials) == "finished"
    assert tuning.chosen == found.recipe.strategy.default_lr
    again = found.run(model, data)
    assert again == tuning  # from the journal: no trial is made twice


@dataclass(frozen=True)
class Fatal:
    """A job whose process dies; each attempt writes a mark."""

    name: str
    marks: Path
    done: bool = False
    taken: bool = False

    def work(self) -> str:
        with open(self.marks, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[SimpleNamespace]:
    results: list[tuple[str, JobResult]] = []
    with WorkerPool(
        1, tmp_path / "output", lambda job, out: results.append((job.name, out))
    ) as made:
        yield SimpleNamespace(pool=made, results=results)


@pytest.mark.slow
def test_a_job_whose_process_keeps_dying_fails_and_its_log_is_named(
    pool: SimpleNamespace, tmp_path: Path
) -> None:
    pool.pool.run([Fatal("doomed", tmp_path / "marks")])
    assert (tmp_path / "marks").read_text() == "x" * ATTEMPTS
    ((name, result),) = pool.results
    assert name == "doomed"
    assert result.state == "failed"
    assert "signal 9" in result.message and str(tmp_path / "output") in result.message


def test_a_failed_run_has_a_record_with_its_reason(tmp_path: Path) -> None:
    from peftkit.comparison.jobs import RunJob, Workspace

    (tmp_path / "small.yaml").write_text(FILE)
    variant = load_comparison(tmp_path / "small.yaml").variants[1]
    model, data = find_model(variant.recipe.model), variant.recipe.data.resolve()
    job = RunJob(variant, 0, None, Workspace(tmp_path, model, data, {"test": 24}))
    job.record_failure("out of memory: the system killed the process")
    assert job.done
    record = RunDir(job.run_dir.path).record
    assert record.status == "failed" and "out of memory" in str(record.reason)
    assert json.loads((job.run_dir.path / "record.json").read_text())["rows"] == {"test": 24}
