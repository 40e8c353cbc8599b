"""Reports of any task: rows that the task scores, scores of which less is better, baselines."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import by_label, write_run

from peftkit.errors import RunError
from peftkit.metrics.registry import gain
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.report import Report, report
from peftkit.runs.learning_curves import direction
from peftkit.tasks.base import Task

ROWS = 200
LINES = Sequence[Mapping[str, Any]]


def write_task_run(
    root: Path,
    strategy: str,
    seed: int,
    task: Mapping[str, Any],
    lines: LINES,
    scores: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float | None]] | None = None,
    labels: Sequence[str] = (),
) -> Path:
    """A run's folder as a task other than classification leaves it."""

    def numbers(found: Mapping[str, float | None]) -> dict[str, Any]:
        return {name: {"value": value, "n": len(lines)} for name, value in found.items()}

    def edit(said: dict[str, Any]) -> None:
        said["recipe"]["task"] = dict(task)
        said["headline"] = next(iter(scores))
        said["labels"] = list(labels)
        said["scores"] = numbers(scores)
        said["baselines"] = {name: numbers(found) for name, found in (baselines or {}).items()}
        said["baseline"] = next(iter(said["baselines"].values()), {})

    folder = write_run(root, strategy, seed, edit=edit)
    named = ({"row": f"t:{i}", "hash": f"{i:016x}", **line} for i, line in enumerate(lines))
    text = "".join(json.dumps(line) + "\n" for line in named)
    (folder / "predictions.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


INSTRUCTIONS = {"kind": "instruction_tuning"}


def of_bits(root: Path, strategy: str, seed: int, factor: float) -> float:
    """A run that spends so many times the bits of others on each row; its bits per byte."""
    chance = np.random.default_rng(3)
    tokens, size = chance.integers(5, 40, ROWS), chance.integers(20, 200, ROWS)
    own = 1 + np.random.default_rng([seed, len(strategy)]).normal(0, 0.01, ROWS)
    nats = np.round(tokens * chance.uniform(1, 3, ROWS) * factor * own, 6)
    bits = float(nats.sum() / np.log(2) / size.sum())
    lines = [{"counts": list(map(float, row))} for row in zip(nats, tokens, size, strict=True)]
    scores = {"bits_per_byte": bits, "perplexity": float(np.exp(nats.sum() / tokens.sum()))}
    untuned = {"untrained": {"bits_per_byte": 1.2, "perplexity": 30.0}}
    write_task_run(root, strategy, seed, INSTRUCTIONS, lines, scores, untuned)
    return bits


@pytest.fixture
def bits(tmp_path: Path) -> tuple[Report, dict[str, list[float]]]:
    found = {
        strategy: [of_bits(tmp_path, strategy, seed, factor) for seed in range(3)]
        for strategy, factor in {"full": 0.80, "lora": 0.801, "frozen": 1.0}.items()
    }
    return report(tmp_path), found


def test_less_is_better_in_order_difference_front_and_verdict(
    bits: tuple[Report, dict[str, list[float]]],
) -> None:
    made, found = bits
    rows = by_label(made)
    assert [each.label for each in made.strategies][-1] == "frozen" and made.reference == "full"
    frozen, lora = rows["frozen"], rows["lora"]
    expected = np.mean(found["frozen"]) - np.mean(found["full"])
    assert frozen.mean == pytest.approx(np.mean(found["frozen"]))
    assert frozen.difference.value == pytest.approx(expected) and expected > 0
    assert frozen.difference.p_corrected < 0.05
    assert not set(frozen.groups) & set(rows["full"].groups)
    assert frozen.pareto["trainable"] == "optimal"  # the cheapest
    assert lora.pareto["trainable"] == "optimal"
    assert made.verdict[0].startswith("Use lora: as good as full within 1 %, at 4.8 % of the")
    assert made.verdict[1].startswith("lora minus full: +0.00")
    assert " bits_per_byte (less is better), simultaneous 95 % CI " in made.verdict[1]
    page = str(made)
    assert "test rows; less is better." in page and "| untrained | 0 |" in page
    assert made.baseline == 1.2 and made.baselines == {"untrained": 1.2}
    assert made.validated_by == "bits_per_byte"
    assert made.confusions == [] and made.disagreement is None


def test_a_worse_strategy_is_never_called_better_and_a_margin_is_a_share_of_the_score(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        of_bits(tmp_path, "full", seed, 0.8)
        of_bits(tmp_path, "lora", seed, 0.83)
        of_bits(tmp_path, "frozen", seed, 0.7)
    lost = report(tmp_path, metric="perplexity", margin=0.0001)
    assert lost.verdict[0].startswith("Use frozen: better than full by ")
    assert by_label(lost)["lora"].pareto["trainable"] == "dominated"
    (tmp_path / "alone").mkdir()
    for path in tmp_path.glob("*-*"):
        if not path.name.startswith("frozen"):
            path.rename(tmp_path / "alone" / path.name)
    near = report(tmp_path / "alone", margin=0.06)
    assert near.verdict[0].startswith("Use lora: as good as full within 6 %, at ")
    far = report(tmp_path / "alone", margin=0.01)
    assert far.verdict[0].startswith("Use full: nothing else is shown to be better, nor anything")
    assert far.verdict[1].startswith("Closest: lora minus full: +")


def test_what_is_no_better_than_the_untuned_model_is_told(tmp_path: Path) -> None:
    for strategy in ("full", "lora"):
        for seed in range(2):
            of_bits(tmp_path, strategy, seed, 2.0)
    found = report(tmp_path).verdict
    said = " ".join(found)
    assert found[0] == "None of these beats answering without training: use none."
    assert "is not shown to beat the baseline 'untrained' (bits_per_byte 1.2000)" in said


def test_scores_of_generated_texts_are_compared_on_the_rows_that_have_one(tmp_path: Path) -> None:
    task = Task.parse({**INSTRUCTIONS, "generate": {"rows": 60}}, "task")
    width = sum(kind.width for kind in task.text_metrics())  # type: ignore[attr-defined]
    for strategy, share in {"full": 0.7, "lora": 0.4}.items():
        for seed in range(2):
            chance = np.random.default_rng([seed, len(strategy)])
            lines = []
            for row in range(ROWS):
                exact = [float(chance.random() < share), 1.0]
                judged = [*exact, *([0.5] * (width - 3)), 1.0]
                lines.append(
                    {"counts": [9.0, 5, 40, *(judged if row % 4 == 0 else [None] * width)]}
                )
            whole = np.array([line["counts"] for line in lines[::4]], dtype=float)
            totals = task.totals(whole.sum(axis=0, keepdims=True), ())
            scores = {name: float(value[0]) for name, value in totals.items()}
            exact_match = {"exact_match": scores.pop("exact_match")}
            folder = write_task_run(
                tmp_path, strategy, seed, task.to_dict(), lines, {**exact_match, **scores}
            )
            said = json.loads((folder / "record.json").read_text())
            said["scores"]["exact_match"]["n"] = ROWS // 4
            (folder / "record.json").write_text(json.dumps(said))
    made = report(tmp_path)
    assert made.rows == ROWS // 4 and by_label(made)["lora"].difference is not None
    assert report(tmp_path, metric="bits_per_byte").rows == ROWS


def of_numbers(root: Path, strategy: str, seed: int, noise: float, metric: str) -> dict[str, float]:
    """A run that predicts numbers with so much noise; its scores."""
    right = np.random.default_rng(0).uniform(0, 5, ROWS)
    said = right + np.random.default_rng([seed, len(strategy)]).normal(0, noise, ROWS)
    rmse = float(np.sqrt(np.mean((said - right) ** 2)))
    scores = {"rmse": rmse, "pearson": float(np.corrcoef(said, right)[0, 1])}
    scores = {metric: scores[metric], **scores}
    lines = [{"label": [y], "predicted": [x]} for y, x in zip(right, said, strict=True)]
    mean: dict[str, Any] = {"train's mean": {"rmse": 1.45, "pearson": None}}
    task = {"kind": "regression", "metric": metric}
    write_task_run(root, strategy, seed, task, lines, scores, mean, ["value"])
    return scores


@pytest.mark.parametrize("metric", ["rmse", "pearson"])
def test_numbers_are_compared_by_their_own_rows(metric: str, tmp_path: Path) -> None:
    found = {
        strategy: [of_numbers(tmp_path, strategy, seed, noise, metric) for seed in range(3)]
        for strategy, noise in {"full": 0.4, "lora": 0.5, "frozen": 1.2}.items()
    }
    made = report(tmp_path)
    rows = by_label(made)
    assert [each.label for each in made.strategies] == ["full", "lora", "frozen"]
    gaps = [a[metric] - b[metric] for a, b in zip(found["frozen"], found["full"], strict=True)]
    assert rows["frozen"].difference.value == pytest.approx(np.mean(gaps), abs=1e-6)
    assert rows["frozen"].difference.p_corrected < 0.05
    assert made.disagreement is None
    line = next(x for x in str(made).splitlines() if x.startswith("| train's mean |"))
    assert ("| 1.4500 |" if metric == "rmse" else "| undefined |") in line
    assert not any("Warning" in sentence for sentence in made.verdict)
    with pytest.raises(RunError, match="do not match"):
        path = tmp_path / "full-0" / "record.json"
        path.write_text(path.read_text().replace(str(found["full"][0][metric]), "0.9"))
        report(tmp_path)


def test_tags_are_compared_by_counts_under_the_records_labels(tmp_path: Path) -> None:
    labels = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    task = Task.parse("token_classification", "task")
    for strategy, share in {"full": 0.9, "lora": 0.7}.items():
        for seed in range(2):
            chance = np.random.default_rng([seed, len(strategy)])
            hits = (chance.random((ROWS, 2)) < share).astype(float)
            rest = np.tile([1.0, 1, 1, 1, 8, 10], (ROWS, 1))  # said, there, right words, words
            counts = np.concatenate([hits, rest], axis=1)
            found = task.totals(counts.sum(axis=0, keepdims=True), labels)
            scores = {name: float(value[0]) for name, value in found.items()}
            lines = [{"tags": ["O"], "predicted": ["O"], "counts": list(row)} for row in counts]
            write_task_run(tmp_path, strategy, seed, task.to_dict(), lines, scores, None, labels)
    made = report(tmp_path)
    assert made.metric == "f1" and by_label(made)["lora"].difference.p_corrected < 0.05
    assert report(tmp_path, metric="f1[PER]").strategies[0].label == "full"
    assert made.disagreement is None and made.baseline is None


def test_a_task_that_is_not_known_here_has_no_rows_but_a_score(tmp_path: Path) -> None:
    for strategy in ("full", "lora"):
        write_task_run(
            tmp_path, strategy, 0, {"kind": "poetry"}, [{"counts": [1]}], {"rhymes": 0.5}
        )
    made = report(tmp_path)
    assert by_label(made)["lora"].mean == 0.5 and by_label(made)["lora"].difference is None
    assert "lora-0: its task 'poetry' is not known" in made.notes


def test_rows_without_what_the_task_reads_are_told(tmp_path: Path) -> None:
    write_task_run(tmp_path, "full", 0, INSTRUCTIONS, [{"said": 1}], {"bits_per_byte": 1.0})
    assert any("its predictions lack row, hash or counts" in x for x in report(tmp_path).notes)


@pytest.mark.parametrize(
    ("metric", "value", "words", "said"),
    [
        ("accuracy", 0.0123, " (1 is perfect)", "+1.2 points"),
        ("chrf", 1.23, " (100 is perfect)", "+1.2 points"),
        ("f1[PER]", -0.5, " (1 is perfect)", "-50.0 points"),
        ("rmse[price]", 1234.5, " (lower is better)", "+1234 rmse[price]"),
        ("evaluate:own", 0.01, "", "+0.01 evaluate:own"),
    ],
)
def test_each_score_is_told_in_its_unit(metric: str, value: float, words: str, said: str) -> None:
    scale = Scale(metric)
    assert direction(metric) == words
    assert scale.describe(value) + scale.unit in (said, said.replace("1234", "1235"))
    assert (gain(metric, 1.0) < 0) == scale.lower == (metric == "rmse[price]")


def test_a_reference_is_reached_from_above_where_less_is_better(tmp_path: Path) -> None:
    for strategy in ("full", "lora"):
        for seed in range(2):
            of_bits(tmp_path, strategy, seed, 0.8)  # validated at 0.75, says `write_run`
    for name, scores in {"lora-0": [0.9, 0.7], "lora-1": [0.9, 0.8]}.items():
        lines = [{"step": 5 * (i + 1), "eval_score": s} for i, s in enumerate(scores)]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    lora = by_label(report(tmp_path))["lora"]
    assert lora.reached == "1 of 2"
    assert lora.measures["seconds_to_reference"].by_seed == {0: 200 * 10 / 20}
