"""Runs and records of peftkit 0.1 (schema 1) predict, resume, merge and report as they did."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import peftkit
from peftkit.records.run_dir import RunDir
from peftkit.reporting.report import report
from support.commands import peftkit as command

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"
NUMBERS: dict[str, list[str]] = json.loads((GOLDEN / "report_numbers.json").read_text())
"""For each folder of records, all numbers of the report that peftkit 0.1 makes of it."""
RUNS = GOLDEN / "runs_of_0.1"
"""Made by peftkit 0.1: the same run twice, once finished and once killed after step 2 of 4."""
SETTINGS = (
    "training.precision=fp32", "training.threads=1", "training.order=random", "data.rows=64",
    "training.steps=4", "training.save_steps=2", "training.packing=off", "training.proof=run",
    "task.untrained_baseline=false", "training.max_grad_norm=0.5",
)  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    shutil.copytree(RUNS / "finished", tmp_path / "runs")
    (run,) = (tmp_path / "runs").glob("lora_tiny-*")
    return run


def test_a_finished_run_predicts(finished: Path) -> None:
    texts = ["the team had a coach near the stadium", "bread and soup"]
    answers = peftkit.predict(finished, texts)
    assert [set(answer["probabilities"]) for answer in answers] == [{"sport", "food"}] * 2


def test_a_finished_run_has_its_record_and_recipe(finished: Path) -> None:
    run = RunDir.open(finished)
    assert run.record.schema_version == 2 and run.record.cost is not None
    assert run.record.cost.artifact_bytes > 0
    assert run.record.recipe["task"]["kind"] == "text_classification"
    assert run.record.recipe["training"]["max_grad_norm"] == 0.5
    assert run.recipe.task.kind == "text_classification"
    assert run.artifact.name == "artefact"


def test_a_finished_run_is_found_by_its_recipe(finished: Path) -> None:
    before = (finished / "record.json").read_bytes()
    recipe = peftkit.Recipe.load("lora_tiny", *SETTINGS)
    record = peftkit.train(recipe, finished.parent)
    assert record.finished_at == json.loads(before)["finished_at"], "it was trained again"
    assert (finished / "record.json").read_bytes() == before


def test_a_finished_run_merges_with_proof(finished: Path, tmp_path: Path) -> None:
    merged = peftkit.merge(finished, tmp_path / "merged")
    assert merged.proof is not None
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    shutil.copytree(RUNS / "killed", tmp_path / "runs")
    (run,) = (tmp_path / "runs").glob("lora_tiny-*")
    done = command("train", "lora_tiny", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 0 and "step 1/4" not in done.stderr, done.stderr
    (whole,) = (RUNS / "finished").glob("lora_tiny-*")
    ours, theirs = (RunDir.open(each).record for each in (run, whole))
    assert ours.scores == theirs.scores and ours.steps == theirs.steps == 4
    (weights,) = run.glob("art*/adapter_model.safetensors")
    assert weights.read_bytes() == (whole / "artefact" / "adapter_model.safetensors").read_bytes()


def numbers(value: Any) -> Iterator[float]:
    """All numbers in plain data."""
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


@pytest.mark.parametrize("folder", sorted(NUMBERS))
def test_records_make_the_report_that_they_made(folder: str) -> None:
    said = json.loads(report(RECORDS / folder, allow_mixed=True).model_dump_json())
    del said["schema_version"]
    assert sorted(f"{number:.10g}" for number in numbers(said)) == NUMBERS[folder]


def test_every_folder_of_records_is_compared() -> None:
    assert set(NUMBERS) == {path.name for path in RECORDS.iterdir() if path.is_dir()}
