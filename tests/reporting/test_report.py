"""Reports: what may be compared, what is said of it, and what damage does."""

import csv
import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.hub.source import Source
from peftkit.metrics.registry import Score
from peftkit.records.record import Cost, ParameterCount, RunRecord, WorldRecord
from peftkit.reporting.report import Report, report
from support.commands import ROOT
from support.commands import peftkit as command

ROWS = 400
LABELS = ["no", "yes"]
TRAINABLE = {"full": 10_000, "lora": 500, "frozen": 50, "adapter": 900}
Edit = Callable[[dict[str, Any]], None]


def source(name: str) -> Source:
    return Source(requested=name, used=name, origin="path", location="", identity=f"sha256:{name}")


def hits(accuracy: float, seed: int, strategy: str) -> np.ndarray:
    """Which rows a run gets right: some rows are hard for every run."""
    hard = np.random.default_rng(7).random(ROWS)
    own = np.random.default_rng([seed, len(strategy), ord(strategy[0])]).random(ROWS)
    score = 0.8 * hard + 0.2 * own
    return score < np.quantile(score, accuracy)


def write_run(
    root: Path,
    strategy: str,
    seed: int,
    accuracy: float = 0.8,
    edit: Edit | None = None,
    failed: str | None = None,
    name: str | None = None,
) -> Path:
    """A run's folder with record and predictions, as training leaves it; `edit` changes the
    record's plain data last."""
    right = hits(accuracy, seed, strategy)
    labels = [LABELS[i % 2] for i in range(ROWS)]
    value = float(right.mean())
    recipe = Recipe.load("lora_tiny", f"strategy={strategy}", f"training.seed={seed}")
    trainable = TRAINABLE[strategy]
    record = RunRecord(
        name=name or f"{strategy}_tiny",
        digest=f"{strategy}{seed}",
        status="failed" if failed else "finished",
        reason=failed,
        recipe=recipe.settings(),
        model=source("tiny"),
        data=source("letters"),
        rows={"train": 800, "validation": 80, "test": ROWS},
        notes=[],
        parameters=ParameterCount(
            trainable=trainable, total=10_000 + trainable, base=10_000, head=10, adapter=trainable
        ),
        headline="accuracy",
        scores={}
        if failed
        else {
            "accuracy": Score(value=value, low=value - 0.03, high=value + 0.03, n=ROWS),
            "precision[no]": Score(value=0.5, n=ROWS),
            "precision[yes]": Score(value=0.5, n=ROWS),
            "recall[no]": Score(value=hit_share(right, 0), n=ROWS),
            "recall[yes]": Score(value=hit_share(right, 1), n=ROWS),
        },
        baseline={} if failed else {"accuracy": Score(value=0.5, n=ROWS)},
        validation={} if failed else {"step": 10, "score": 0.75, "loss": 0.5},
        steps=0 if failed else 20,
        cost=None if failed else cost(strategy, seed),
        world=None if failed else world(),
        versions={"torch": "2.13", "peft": "0.21"},
        finished_at=f"2026-11-2{seed % 10}",
    )
    folder = root / f"{strategy}-{seed}"
    folder.mkdir(parents=True)
    said = record.model_dump(mode="json")
    if edit is not None:
        edit(said)
    (folder / "record.json").write_text(json.dumps(said))
    if not failed:
        lines = prediction_lines(labels, right)
        (folder / "predictions.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


def hit_share(right: np.ndarray, label_id: int) -> float:
    """The recall of one of the two labels, which take turns."""
    return float(right[label_id::2].mean())


def prediction_lines(labels: list[str], right: np.ndarray) -> str:
    lines = []
    for i, (label, hit) in enumerate(zip(labels, right, strict=True)):
        said = label if hit else LABELS[label == "no"]
        row = {"row": f"test:{i}", "hash": f"{i:016x}", "label": label, "predicted": said}
        lines.append(json.dumps({**row, "probabilities": [0.5, 0.5]}))
    return "\n".join(lines) + "\n"


def cost(strategy: str, seed: int) -> Cost:
    seconds = 100 * {"full": 4, "lora": 2, "adapter": 2.2, "frozen": 1}[strategy] + seed
    return Cost(
        train_seconds=seconds,
        evaluate_seconds=5,
        total_seconds=seconds + 9,
        tokens=1000,
        tokens_per_second=10,
        samples_per_second=1,
        padding_share=0,
        peak_bytes=(1 + TRAINABLE[strategy]) * 2**20,
        peak_reserved_bytes=None,
        predicted_peak_bytes=None,
        artifact_bytes=TRAINABLE[strategy] * 4,
    )


def world() -> WorldRecord:
    return WorldRecord(
        ranks=1, threads=2, precision="fp32", sharding="none", device="cpu: x", micro_batch_size=8
    )


def some_runs(root: Path, seeds: int = 3, **accuracies: float) -> Path:
    for strategy, accuracy in accuracies.items():
        for seed in range(seeds):
            write_run(root, strategy, seed, accuracy)
    return root


def by_label(found: Report) -> dict[str, Any]:
    return {each.label: each for each in found.strategies}


def change(path: str, value: Any) -> Edit:
    """An edit that sets what stands at a dotted path of a record."""

    def edit(said: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            said = said[key]
        said[last] = value

    return edit


def test_a_report_has_a_row_a_strategy_with_the_paired_difference_and_costs(
    tmp_path: Path,
) -> None:
    found = report(some_runs(tmp_path, 5, full=0.85, lora=0.84, frozen=0.6))
    rows = by_label(found)
    assert found.reference == "full" and list(rows) == ["full", "lora", "frozen"]
    frozen = rows["frozen"]
    assert frozen.scores == {seed: 0.6 for seed in range(5)} and frozen.deviation == 0
    assert frozen.difference.value == pytest.approx(-0.25)
    assert frozen.difference.low < -0.25 < frozen.difference.high < -0.15
    assert frozen.difference.p_corrected < 0.05 and rows["full"].difference is None
    assert not set(frozen.groups) & set(rows["full"].groups)
    assert frozen.measures["train_seconds"].median == 102
    assert frozen.measures["peak_evaluate_bytes"] is None
    assert frozen.trainable == 50 and found.baseline == 0.5 and found.rows == ROWS
    page = str(found)
    assert "| majority class | 0 |" in page and "eval peak MiB" in page.split("Not recorded:")[1]


def test_the_cheapest_that_loses_less_than_the_margin_is_shipped(tmp_path: Path) -> None:
    folder = some_runs(tmp_path, 5, full=0.85, lora=0.85, frozen=0.6)
    found = report(folder, margin=0.05)
    assert found.verdict[0] == (
        "Use lora: as good as full within 5 points, at 4.8 % of the weights and half the time."
    )
    assert found.verdict[1].startswith("lora minus full: +0.0 points, simultaneous 95 % CI -")
    assert "500 trainable weights (4.76% of all)" in found.verdict[2]
    assert "0.50 times the training time of full" in found.verdict[2]
    strict = report(folder, margin=0.0001)
    assert strict.verdict[0] == (
        "Use full: nothing else is shown to be better, nor anything cheaper to be as good within "
        "0.01 points."
    )
    assert strict.verdict[1].startswith("Closest: lora minus full: ")
    other = report(folder, reference="frozen")
    assert other.verdict[0].startswith("Use lora: better than frozen by 25.0 points, at ")


def test_a_front_says_who_is_surely_beaten_and_who_may_be(tmp_path: Path) -> None:
    found = report(some_runs(tmp_path, 5, full=0.84, lora=0.85, frozen=0.6, adapter=0.6))
    marks = {label: row.pareto for label, row in by_label(found).items()}
    assert marks["lora"] == {
        axis: "optimal" for axis in ("trainable", "peak_bytes", "train_seconds")
    }
    assert set(marks["full"].values()) == {
        "inconclusive"
    }  # the better lora is not significantly so
    assert set(marks["frozen"].values()) == {"optimal"}  # the cheapest
    assert set(marks["adapter"].values()) == {"dominated"}
    single = report([tmp_path / f"{name}-0" for name in ("full", "lora", "adapter")])
    marks = {label: row.pareto for label, row in by_label(single).items()}
    assert marks["adapter"]["trainable"] == "dominated"  # a count is exact
    assert marks["adapter"]["train_seconds"] == "inconclusive"  # one measurement is not


def test_below_five_seeds_it_says_what_cannot_be_shown(tmp_path: Path) -> None:
    folder = some_runs(tmp_path, 3, full=0.85, lora=0.84)
    said = " ".join(report(folder).verdict)
    assert "Minimum detectable difference to full (80 % power, corrected): " in said
    assert "3 seeds say little" in said and "0.5 to 6.3 times the one in the table" in said
    one = report([folder / "full-0", folder / "lora-0"])
    assert "One seed: intervals and p-values are for these trained weights" in " ".join(one.verdict)
    assert by_label(one)["lora"].deviation is None and by_label(one)["lora"].difference is not None


def test_failures_are_rows_and_a_survivor_is_not_shipped(tmp_path: Path) -> None:
    some_runs(tmp_path, 3, full=0.85)
    write_run(tmp_path, "lora", 0, 0.95)
    write_run(tmp_path, "lora", 1, failed="out of memory (12 GB wanted) - use a smaller batch")
    for seed in range(2):
        write_run(tmp_path, "frozen", seed, failed="the loss is not a number at step 3 - lower lr")
    found = report(tmp_path)
    rows = by_label(found)
    assert rows["frozen"].status == "diverged" and rows["frozen"].mean is None
    assert [f.status for f in rows["lora"].failures] == ["out of memory"]
    assert found.verdict[0].startswith("Use full")
    assert any("lora failed in 1 of 2 runs (out of memory)" in line for line in found.verdict)
    page = str(found)
    assert "| frozen |" in page and "| diverged |" in page
    assert "lora, seed 1: out of memory (lora-1: out of memory (12 GB" in page


def test_where_every_run_failed_there_is_nothing_to_ship(tmp_path: Path) -> None:
    for strategy in ("full", "lora"):
        write_run(tmp_path, strategy, 0, failed="out of memory")
    found = report(tmp_path)
    assert found.verdict == ["No recommendation: no run has a score."]
    assert [each.status for each in found.strategies] == ["out of memory"] * 2
    assert "| lora | 500 |" in str(found)


@pytest.mark.parametrize(
    ("path", "value", "fact"),
    [
        ("data.identity", "sha256:other", "data"),
        ("data.is_fallback", True, "data"),
        ("rows.train", 700, "split"),
        ("recipe.data.seed", 9, "split"),
        ("model.identity", "revision:other", "model"),
        ("headline", "precision[no]", "metric"),
        ("versions.torch", "2.12", "version of torch"),
        ("world.precision", "bf16", "precision"),
        ("world.device", "cuda: H100", "hardware"),
        ("world.threads", 8, "hardware"),
    ],
)
def test_what_may_not_be_mixed_is_refused_unless_allowed_and_then_said(
    path: str, value: Any, fact: str, tmp_path: Path
) -> None:
    some_runs(tmp_path, 2, full=0.85)
    for seed in range(2):
        write_run(tmp_path, "lora", seed, 0.8, change(path, value))
    with pytest.raises(RunError, match="these runs are not comparable") as refused:
        report(tmp_path)
    assert [fault.where for fault in refused.value.faults] == [fact]
    assert "lora-0" in refused.value.faults[0].what
    found = report(tmp_path, allow_mixed=True)
    lora = next(each for each in found.strategies if each.strategy == "lora")
    assert lora.mixed == [fact] and "| mixed |" in str(found) and found.mixed
    assert any(
        f"Warning: these runs differ in more than their strategy ({fact})" in line
        for line in found.verdict
    )
    assert ("train_seconds" in lora.pareto) == (fact != "hardware")


def test_rows_that_are_missing_are_dropped_and_counted(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    path = tmp_path / "lora-1" / "predictions.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[100:][::-1])))  # another order, too
    found = report(tmp_path)
    assert found.rows == 300
    assert (
        "100 test rows are not in every run's predictions and dropped, 300 are compared; rows are "
        "missing from lora-1" in found.notes
    )
    expected = hits(0.8, 0, "lora")[100:].mean() - hits(0.85, 0, "full")[100:].mean()
    rows = by_label(found)
    assert rows["lora"].scores[0] - rows["full"].scores[0] == pytest.approx(expected)


@pytest.mark.parametrize("cut", [200, 1000])
def test_predictions_that_are_cut_short_are_used_as_far_as_they_go(
    cut: int, tmp_path: Path
) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    path = tmp_path / "lora-1" / "predictions.jsonl.gz"
    path.write_bytes(path.read_bytes()[:cut])
    found = report(tmp_path)
    assert "lora-1: its predictions are cut short" in found.notes
    assert 0 < found.rows < ROWS and "test rows are not in every run's" in " ".join(found.notes)


def replaced(folder: Path, old: str, new: str) -> None:
    path = folder / "predictions.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


def test_one_row_with_two_labels_or_two_texts_is_refused(tmp_path: Path) -> None:
    some_runs(tmp_path, 1, full=0.85, lora=0.8)
    replaced(tmp_path / "lora-0", '"label": "yes"', '"label": "no"')
    with pytest.raises(RunError, match=r"row 'test:1' is labeled '(no|yes)', in"):
        report(tmp_path, allow_mixed=True)
    write_run(tmp_path, "frozen", 0)
    replaced(tmp_path / "frozen-0", f"{3:016x}", "f" * 16)
    with pytest.raises(RunError, match="row 'test:3' has another text than in"):
        report([tmp_path / "full-0", tmp_path / "frozen-0"])


def test_predictions_that_do_not_give_the_records_score_are_refused(tmp_path: Path) -> None:
    some_runs(tmp_path, 1, full=0.85)
    write_run(tmp_path, "lora", 0, 0.8, change("scores.accuracy.value", 0.9))
    with pytest.raises(RunError, match=r"give accuracy 0\.800000, its record has 0\.900000"):
        report(tmp_path)


def test_without_predictions_there_is_no_interval_and_no_verdict(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    for path in tmp_path.rglob("predictions.jsonl.gz"):
        path.unlink()
    found = report(tmp_path)
    lora = by_label(found)["lora"]
    assert (lora.mean, lora.difference, lora.groups) == (pytest.approx(0.8), None, "")
    assert (
        found.verdict[0].startswith("No recommendation")
        and "lora-0: it has no predictions" in found.notes
    )


def test_damaged_records_are_told_and_the_others_reported(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    texts = {
        "cut": '{"schema_version": 1, "na',
        "old": '{"schema_version": 99}',
        "list": "[]",
        "bare": '{"schema_version": 1}',
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    write_run(tmp_path, "frozen", 0, edit=change("recipe.strategy", {}))
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "record.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "run.json").write_text("{}")
    found = report(tmp_path)
    assert len(found.strategies) == 2
    told = {fault.where: fault.what for fault in found.unread}
    assert told["cut"].startswith("is not a record") and "schema version 99" in told["old"]
    assert told["list"].startswith("is not a record") and told["bare"].startswith("is not a valid")
    assert told["gone"].startswith("cannot be read (No such file or directory) - ")
    assert told["frozen-0"] == "its recipe has no strategy.kind - run it again"
    assert "1 run has no record yet and is not in the table: killed" in found.notes
    assert "cut: is not a record" in str(found)
    with pytest.raises(RunError, match="there is no record to report on"):
        report(tmp_path / "cut")
    with pytest.raises(RunError, match="there is no such directory"):
        report(tmp_path / "none")


def test_a_score_that_is_no_number_is_empty(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85)
    write_run(tmp_path, "lora", 0, 0.8, change("scores.accuracy.value", float("nan")))
    (tmp_path / "lora-0" / "predictions.jsonl.gz").unlink()
    found = report(tmp_path)
    assert by_label(found)["lora"].mean is None
    assert "NaN" not in found.model_dump_json() and "nan" not in str(found)


def test_a_seed_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    write_run(tmp_path / "again", "lora", 1, 0.8)
    write_run(tmp_path / "again", "full", 0, failed="the loss is not a number")
    found = report([tmp_path, tmp_path])
    assert by_label(found)["lora"].seeds == [0, 1] and not by_label(found)["full"].failures
    notes = " ".join(found.notes)
    assert "lora: seed 1 has 2 runs: " in notes and "full: seed 0 has 2 runs" in notes


def test_strategies_of_one_kind_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lora", 0)
    write_run(tmp_path / "b", "lora", 0, edit=change("recipe.strategy.r", 99))
    found = report(tmp_path)
    assert sorted(by_label(found)) == ["lora r=8", "lora r=99"] or "lora r=99" in by_label(found)
    assert by_label(found)["lora r=99"].settings == {"strategy.r": "99"}


HOSTILE = "<script>alert(1)</script> | [x](javascript:y) \x1b[31m\u202e`z`\n=1+1"


def test_hostile_names_are_escaped_everywhere(tmp_path: Path) -> None:
    def edit(said: dict[str, Any]) -> None:
        said["data"]["used"] = said["data"]["requested"] = HOSTILE
        said["recipe"]["strategy"]["kind"] = f"={HOSTILE}"

    for seed in range(2):
        write_run(tmp_path / "runs", "lora", seed, edit=edit)
    write_run(tmp_path / "runs", "full", 0, edit=change("data.used", HOSTILE), failed=HOSTILE)
    found = report(tmp_path / "runs", allow_mixed=True)
    made = [path.read_text() for path in found.write(tmp_path / "out")]
    page, sheet, data, *_ = made
    assert "<script>" not in page and "&lt;script&gt;" in page
    for text in made:
        assert "\x1b" not in text and "\u202e" not in text.replace(data, "")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    cells = {len(line.replace("\\|", "").split("|")) for line in rows}
    assert len(cells) == 2 and "](javascript" not in page.replace("\\](", "")
    assert next(csv.DictReader(sheet.splitlines()))["label"].startswith("'=")
    assert json.loads(data)["title"].startswith("<script>")


def test_files_say_the_same_and_are_written_at_once(tmp_path: Path) -> None:
    found = report(some_runs(tmp_path / "runs", 2, full=0.85, lora=0.8))
    paths = found.write(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "charts",
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert paths[0].read_text() == str(found)
    assert Report.model_validate_json(paths[2].read_text()) == found
    rows = {row["label"]: row for row in csv.DictReader(paths[1].read_text().splitlines())}
    assert float(rows["lora"]["difference_value"]) == by_label(found)["lora"].difference.value
    assert rows["full"]["difference_value"] == rows["full"]["peak_evaluate_bytes"] == ""


def test_seconds_to_the_references_score_come_from_logs_that_lie_beside(tmp_path: Path) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    assert by_label(report(tmp_path))["lora"].reached is None
    for name, scores in {"lora-0": [0.5, 0.76], "lora-1": [0.5, 0.6]}.items():
        lines = [{"step": 5 * (i + 1), "eval_score": s} for i, s in enumerate(scores)]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    lora = by_label(report(tmp_path))["lora"]
    assert lora.reached == "1 of 2"
    assert lora.measures["seconds_to_reference"].by_seed == {0: 200 * 10 / 20}


def test_another_metric_is_compared_by_its_own_rows(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks" / "records" / "imdb_first"
    found = report([folder / "full_imdb-d97a0b33", folder / "lora_imdb-0456fa40"], metric="roc_auc")
    lora = by_label(found)["lora"]
    assert lora.mean == pytest.approx(0.913535, abs=1e-6)
    assert lora.difference is not None and lora.difference.low < lora.difference.value
    with pytest.raises(RunError, match="no score called 'accurcy' - did you mean 'accuracy'"):
        report(folder, metric="accurcy")
    with pytest.raises(RunError, match="no strategy is called 'lorra' - did you mean 'lora'"):
        report(folder, reference="lorra")


def test_a_headline_that_stands_first_does_not_turn_the_labels_round(tmp_path: Path) -> None:
    expected = {}
    for strategy, accuracy in {"full": 0.85, "lora": 0.8}.items():
        right, labels = hits(accuracy, 0, strategy), np.arange(ROWS) % 2
        value = float(f1_score(labels, np.where(right, labels, 1 - labels)))
        expected[strategy] = value

        def edit(said: dict[str, Any], value: float = value) -> None:
            scores = said["scores"]
            first = {"precision[yes]": scores.pop("precision[yes]")}
            said["headline"] = "precision[yes]"
            said["scores"] = {**first, **scores, "f1": {"value": value, "n": ROWS}}

        write_run(tmp_path, strategy, 0, accuracy, edit)
    found = report(tmp_path, metric="f1")
    assert {label: row.mean for label, row in by_label(found).items()} == pytest.approx(expected)
    assert by_label(found)["lora"].difference is not None


def test_records_in_memory_are_reported_with_the_folders_they_lie_in(tmp_path: Path) -> None:
    for strategy in ("full", "lora"):
        path = write_run(tmp_path, strategy, 0)
        said = RunRecord.model_validate_json((path / "record.json").read_text())
        path.rename(tmp_path / f"{said.name}-{said.digest[:8]}")
    records = [
        RunRecord.model_validate_json((path / "record.json").read_text())
        for path in sorted(tmp_path.iterdir())
    ]
    near = peftkit.report(records, root=tmp_path)
    far = peftkit.report(records, root=tmp_path / "none")
    assert by_label(near)["lora"].difference is not None
    assert by_label(far)["lora"].difference is None and by_label(far)["lora"].mean == 0.8


def test_the_verb_writes_the_files_and_tells_the_verdict(tmp_path: Path) -> None:
    some_runs(tmp_path / "runs", 2, full=0.85, lora=0.8)
    done = command("report", "runs", "--to", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Use full: ") and "wrote out/report.md" in done.stdout
    page = command("report", "runs", cwd=tmp_path).stdout
    assert page == (tmp_path / "out" / "report.md").read_text()
    data = json.loads(command("report", "runs", "--json", cwd=tmp_path).stdout)
    assert data["schema_version"] == 2 and len(data["strategies"]) == 2
    wrong = command("report", "nowhere", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    (tmp_path / "file").touch()
    full = command("report", "runs", "--to", "file/out", cwd=tmp_path)
    assert full.returncode == 2 and full.stderr.endswith("- give another folder with --to\n")


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    from support.commands import python

    some_runs(tmp_path / "runs", 2, full=0.85, lora=0.8)
    code = (
        "import sys; from pathlib import Path; from peftkit.reporting.report import report\n"
        "report(Path('runs'))\n"
        "print([n for n in ('torch', 'transformers', 'sklearn', 'pandas') if n in sys.modules])"
    )
    assert python("-c", code, cwd=tmp_path).stdout == "[]\n"


def test_the_peak_of_evaluation_has_a_column_where_records_hold_it(tmp_path: Path) -> None:
    write_run(tmp_path, "full", 0)
    write_run(tmp_path, "lora", 0, edit=change("cost.peak_evaluate_bytes", 300 * 2**20))
    found = report(tmp_path)
    assert by_label(found)["lora"].measures["peak_evaluate_bytes"].median == 300 * 2**20
    lines = str(found).splitlines()
    heads = [line for line in lines if line.startswith("| strategy")][1]
    row = [line for line in lines if line.startswith("| lora")][1]
    assert row.split(" | ")[heads.split(" | ").index("eval peak MiB")] == "300"


def smaller_files(megabytes: float) -> Callable[[], None]:
    """What a process does first to have no file grow beyond that: its disk is full, as it were."""

    def limit() -> None:
        size = int(megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_full_disk_leaves_the_old_report_whole_and_nothing_half_written(tmp_path: Path) -> None:
    some_runs(tmp_path / "runs", 2, full=0.85, lora=0.8)
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("the old one")
    said = subprocess.run(
        [sys.executable, "-m", "peftkit.cli", "report", "runs", "--to", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=smaller_files(0.1),
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2 and "Traceback" not in said.stderr, said.stderr
    assert "cannot be written (File too large) - " in said.stderr and "--to" in said.stderr
    assert (out / "report.html").read_text() == "the old one"
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_a_terminal_is_told_nothing_that_it_would_obey(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "runs", "full", seed)
        write_run(tmp_path / "runs", "lora", seed, edit=change("data.used", HOSTILE))
    refused = command("report", "runs", cwd=tmp_path)
    assert refused.returncode == 2 and "these runs are not comparable" in refused.stderr
    allowed = command("report", "runs", "--allow-mixed", cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    for text in (refused.stderr, allowed.stdout):
        assert "alert(1)" in text and "\x1b" not in text and "\u202e" not in text


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"not gzip at all\n", "its predictions cannot be read (they are damaged, or not gzip)"),
        (gzip.compress(b"{not json}\n"), "its predictions cannot be read (JSON parse error"),
        (gzip.compress(b""), "its predictions cannot be read (Empty JSON file)"),
        (gzip.compress(b'{"row": "a", "hash": "b", "label": "no"}\n'), "lack row, hash or pred"),
        (
            gzip.compress(2 * b'{"row": "a", "hash": "b", "label": "no", "predicted": "no"}\n'),
            "its predictions have a row twice",
        ),
        (
            gzip.compress(b'{"row": 1, "hash": "b", "label": "no", "predicted": "no"}\n'),
            "its predictions cannot be read (JSON parse error",
        ),
    ],
    ids=["no gzip", "no JSON", "empty", "keys lack", "a row twice", "a number for a row"],
)
def test_damaged_predictions_are_told_and_their_run_is_not_compared(
    content: bytes, note: str, tmp_path: Path
) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8, frozen=0.6)
    for seed in range(2):
        (tmp_path / f"lora-{seed}" / "predictions.jsonl.gz").write_bytes(content)
    found = report(tmp_path)
    assert any(each.startswith("lora-1: ") and note in each for each in found.notes), found.notes
    rows = by_label(found)
    assert rows["lora"].difference is None and rows["lora"].mean == pytest.approx(0.8)
    assert rows["frozen"].difference is not None and found.rows == ROWS
    assert "not compared with full, without common seeds, folds or predictions: lora" in (
        found.notes
    )


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("recipe.training.seed", "one", "its recipe has training.seed='one' - run it again"),
        ("recipe.training.seed", [3], "its recipe has training.seed='[3]' - run it again"),
        ("recipe.data.folds", "5", "its recipe has data.folds='5' - run it again"),
        ("recipe.strategy.kind", 3, "its recipe has strategy.kind='3' - run it again"),
        ("recipe.data", [], "its recipe has no data.kind - run it again"),
        ("cost", [], "is not a valid record (cost: input should be "),
        ("surprise", 1, "is not a valid record (surprise: extra inputs"),
    ],
)
def test_a_record_of_the_wrong_make_is_told_and_the_others_reported(
    path: str, value: Any, what: str, tmp_path: Path
) -> None:
    some_runs(tmp_path, 2, full=0.85, lora=0.8)
    write_run(tmp_path, "frozen", 0, edit=change(path, value))
    found = report(tmp_path)
    assert [fault.where for fault in found.unread] == ["frozen-0"]
    assert found.unread[0].what.startswith(what) and list(by_label(found)) == ["full", "lora"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_costs_and_logged_scores_that_are_no_numbers_are_empty(
    value: float, tmp_path: Path
) -> None:
    some_runs(tmp_path, 2, full=0.85)
    for seed in range(2):
        write_run(tmp_path, "lora", seed, 0.8, change("cost.train_seconds", value))
        line = json.dumps({"step": 5, "eval_score": value})
        (tmp_path / f"lora-{seed}" / "log.jsonl").write_text(f'{line}\n{{"step": 6, "eva')
    found = report(tmp_path)
    lora = by_label(found)["lora"]
    assert lora.measures["train_seconds"] is None and lora.difference is not None
    assert lora.reached == "0 of 2" and "train_seconds" not in lora.pareto
    text = found.model_dump_json() + str(found)
    assert "NaN" not in text and "Infinity" not in text and " inf" not in text
    write_run(tmp_path, "frozen", 0, 0.8, change("scores.accuracy.value", value))
    with pytest.raises(RunError, match=r"give accuracy 0\.800000, its record has (nan|-?inf)"):
        report(tmp_path)


def of_fold(fold: int, folds: int = 5) -> Edit:
    """An edit that makes a run one of a fold, whose rows are no other's."""

    def edit(said: dict[str, Any]) -> None:
        said["recipe"]["data"] |= {"folds": folds, "fold": fold}
        said["rows"] = {"train": 288, "validation": 32 - fold % 2, "test": 80 + fold % 2}
        said["digest"] += f"-{fold}"

    return edit


def test_folds_take_the_place_of_seeds_and_seeds_within_a_fold_are_averaged(
    tmp_path: Path,
) -> None:
    scores = {"full": [0.80, 0.86, 0.84, 0.82, 0.83], "lora": [0.70, 0.72, 0.71, 0.75, 0.70]}
    for fold in range(5):
        for seed, off in enumerate((-0.01, 0.01)):
            folder = tmp_path / f"fold-{fold}"
            write_run(folder, "full", seed, scores["full"][fold] + off, of_fold(fold))
        write_run(tmp_path / f"fold-{fold}", "lora", 0, scores["lora"][fold], of_fold(fold))
    write_run(tmp_path / "again", "lora", 0, 0.7, of_fold(4))
    found = report(tmp_path)
    rows = by_label(found)
    assert found.folds == 5 and found.rows == 5 * 80 + 2
    assert rows["full"].scores == pytest.approx(dict(enumerate(scores["full"])))
    assert rows["full"].measures["train_seconds"].by_seed[3] == 400.5  # of two seeds
    compared = rows["lora"].difference
    values = np.array(scores["lora"]) - np.array(scores["full"])
    assert compared.value == pytest.approx(values.mean()) and compared.seeds == [0, 1, 2, 3, 4]
    overlap = np.mean([(80 + i % 2) / (320 - i % 2) for i in range(5)])
    error = np.sqrt((1 / 5 + overlap) * values.var(ddof=1) + 4 / found.rows**2)
    expected = values.mean() + stats.t.ppf(0.975, 4) * error
    assert compared.high == pytest.approx(expected, rel=0.02)
    assert any("lora: fold 4, seed 0 has 2 runs" in note for note in found.notes)
    assert found.baseline == 0.5 and "5 of 5 folds" in found.verdict[1]


def test_folds_that_were_not_run_or_failed_are_told(tmp_path: Path) -> None:
    for fold in range(3):
        write_run(tmp_path / f"{fold}", "full", 0, 0.8 + fold / 100, of_fold(fold))
        if fold:
            write_run(tmp_path / f"{fold}", "lora", 0, 0.7, of_fold(fold))
    write_run(tmp_path / "0", "lora", 0, edit=of_fold(0), failed="out of memory")
    write_run(tmp_path / "1", "frozen", 0, 0.6, of_fold(1))
    found = report(tmp_path)
    assert "full has no score in 2 of 5 folds: 3, 4" in found.notes
    assert "lora has no score in 3 of 5 folds: 0, 3, 4" in found.notes
    assert "lora, fold 0, seed 0: out of memory" in str(found)
    rows = by_label(found)
    assert rows["lora"].difference.seeds == [1, 2] and rows["frozen"].difference is None
    assert any("not compared with full" in note and "frozen" in note for note in found.notes)
    alone = report([tmp_path / "1"])
    assert alone.verdict[0].startswith("No recommendation: no two strategies share folds")
    write_run(tmp_path / "other", "frozen", 0, 0.6, of_fold(1, folds=4))
    with pytest.raises(RunError, match=r"numbers of folds differ \(5 in .*, 4 in "):
        report(tmp_path, allow_mixed=True)
