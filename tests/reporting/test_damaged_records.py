"""Reports of records that no run writes: each is told by name, the others are reported."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_report import by_label, of_fold, some_runs, write_run

from peftkit.reporting.report import Report, report
from support.commands import peftkit as command

HUGE = "1" + "0" * 400
DEEP = "[" * 500 + "]" * 500


def told(found: Report) -> dict[str, str]:
    """What is said of each record that cannot be used; the report can be written."""
    assert found.model_dump_json() and str(found)
    assert list(by_label(found)) == ["full", "lora"]
    return {fault.where: fault.what for fault in found.unread}


def damaged(root: Path, path: str, text: str) -> Path:
    """Sound runs, and one whose record says `text` at a dotted path."""
    some_runs(root, 2, full=0.85, lora=0.8)
    mark = "@here@"

    def edit(said: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            said = said[key]
        said[last] = mark

    record = write_run(root, "frozen", 0, edit=edit) / "record.json"
    record.write_text(record.read_text().replace(f'"{mark}"', text))
    return root


@pytest.mark.parametrize(
    ("path", "text", "what"),
    [
        ("cost.peak_bytes", HUGE, "the number 10000000... of 401 characters is too large"),
        ("cost.artifact_bytes", f"-{HUGE}", "the number -1000000... of 402 characters is too"),
        ("parameters.trainable", HUGE, "of 401 characters is too large"),
        ("parameters.total", HUGE, "of 401 characters is too large"),
        ("steps", HUGE, "of 401 characters is too large"),
        ("scores.accuracy.n", str(2**64), "the number 18446744073709551616 is too large"),
        ("recipe.training.seed", "9" * 5000, "of 5000 characters is too large"),
        ("cost.train_seconds", "1e999", "the number 1e999 is too large"),
        ("cost.total_seconds", "-1e308", "the number -1e308 is too large"),
        ("cost.peak_bytes", "-5", "(cost.peak_bytes: input should be greater than or equal to 0)"),
        ("rows.test", "-1", "(rows.test: input should be greater than or equal to 0)"),
        ("cost.peak_bytes", "NaN", "(cost.peak_bytes: input should be a"),
        ("recipe.strategy.kind", r'"\ud800"', "a text has a lone surrogate"),
        ("data.used", r'"\udfff"', "a text has a lone surrogate"),
        ("details", DEEP, "it is nested too deeply"),
        ("recipe.strategy.r", "[" * 5000 + "]" * 5000, "it is nested too deeply"),
        ("steps", '1, "steps": 2', "'steps' is repeated"),
        ("recipe.data.folds", str(10**9), "its recipe has data.folds='1000000000'"),
        ("schema_version", f'"{"x" * 10**6}"', "has schema version xxx"),
    ],
)
def test_what_no_run_writes_is_a_fault_by_name(
    path: str, text: str, what: str, tmp_path: Path
) -> None:
    said = told(report(damaged(tmp_path, path, text)))
    assert list(said) == ["frozen-0"] and what in said["frozen-0"]
    assert len(said["frozen-0"]) < 300


@pytest.mark.parametrize("path", ["cost.train_seconds", "validation.score"])
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "0", "-1.5"])
def test_numbers_that_a_run_may_come_to_are_read(path: str, text: str, tmp_path: Path) -> None:
    found = report(damaged(tmp_path, path, text))
    found.write(tmp_path / "out")
    assert found.unread == [] and "frozen" in by_label(found)


def test_a_record_that_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    for name in ("folder", "pipe", "endless"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "record.json").mkdir()
    os.mkfifo(tmp_path / "pipe" / "record.json")
    (tmp_path / "endless" / "record.json").symlink_to("/dev/zero")
    said = told(report(tmp_path))
    assert sorted(said) == ["endless", "folder", "pipe"]
    assert all("is not a record (it is no file)" in what for what in said.values())


def test_a_folders_name_that_is_no_text_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    os.rename(tmp_path / "lora-0", os.fsencode(tmp_path) + b"/lora-\xff")
    os.mkdir(os.fsencode(tmp_path) + b"/no-\xff")
    (tmp_path / os.fsdecode(b"no-\xff") / "record.json").write_text("{")
    found = report(tmp_path)
    assert list(told(found)) == ["no-?"] and "lora-?" in by_label(found)["lora"].runs
    found.write(tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    [
        f'{{"step": 5, "eval_score": {HUGE}}}',
        f'{{"step": {HUGE}, "eval_score": 0.9}}',
        f'{{"step": 5, "eval_score": {"[" * 5000}{"]" * 5000}}}',
    ],
)
def test_a_log_that_no_run_writes_is_none(line: str, tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    (tmp_path / "lora-0" / "log.jsonl").write_text(line + "\n")
    found = report(tmp_path)
    assert by_label(found)["lora"].reached is None and found.curves == []


def test_predictions_and_logs_that_cannot_be_read_are_told_or_none(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    for name in ("predictions.jsonl", "log.jsonl"):
        # a file by its kind, whose first bytes cannot be read by anyone
        (tmp_path / "lora-0" / name).symlink_to("/proc/self/mem")
    found = report(tmp_path)
    assert "lora-0: its predictions cannot be read (Input/output error)" in found.notes
    assert told(found) == {} and found.curves == []


def test_a_record_in_memory_beside_a_damaged_file_is_out_of_its_reach(tmp_path: Path) -> None:
    from peftkit.records.record import read_record

    some_runs(tmp_path / "runs", 1, full=0.85, lora=0.8)
    paths = list((tmp_path / "runs").glob("*/record.json"))
    records = [read_record(path) for path in paths]
    for path in paths:
        path.write_text('{"dig')
    found = report(records)
    assert sum("its directory is not known" in note for note in found.notes) == 2


def test_mixed_runs_without_a_common_row_are_reported_with_a_word(tmp_path: Path) -> None:
    some_runs(tmp_path, 1, full=0.85, lora=0.8)
    path = tmp_path / "lora-0" / "predictions.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).replace(b'"test:', b'"other:')
    path.write_bytes(gzip.compress(lines))
    found = report(tmp_path, allow_mixed=True)
    assert "the runs have no test row in common" in found.notes
    assert by_label(found)["lora"].difference is None


def test_folds_beyond_any_cross_validation_are_not_counted_out(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    write_run(tmp_path, "frozen", 0, edit=of_fold(0, folds=0))
    assert "its recipe has data.folds=" in told(report(tmp_path))["frozen-0"]


def test_the_verb_tells_a_damaged_record_without_a_traceback(tmp_path: Path) -> None:
    damaged(tmp_path / "runs", "cost.peak_bytes", HUGE)
    done = command("report", "runs", "--to", "out", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "not read: frozen-0: is not a record (the number 10000000... of" in done.stdout
    assert "frozen-0: is not a record" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unread"]
