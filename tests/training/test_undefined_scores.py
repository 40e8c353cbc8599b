"""Validation splits without a defined score: the loss decides which weights are kept."""

import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

from peftkit.comparison.settings import Budget
from peftkit.comparison.tuning import LearningRateSearch
from peftkit.config.recipe import Recipe
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World
from peftkit.training.callbacks import RecordingCallback
from support.run_processes import Zygote, killed_at, logged, record, result


@pytest.fixture
def recorder(tmp_path: Path) -> RecordingCallback:
    alone = World(0, 1, 1, "fp32", "cpu", "none")
    recipe = Recipe.load("lora_tiny", "task.metric=mcc")
    return RecordingCallback(recipe, RunDir(tmp_path), alone)


def evaluations(*found: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """Log lines of evaluations with such scores and losses, at steps 1, 2, ..."""
    return [
        {"step": step, "eval_score": score, "eval_loss": loss}
        for step, (score, loss) in enumerate(found, 1)
    ]


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([(None, 0.9), (None, 0.5), (None, 0.7)], 2),
        ([(None, 0.5), (None, 0.5)], 1),
        ([(0.1, 0.5), (0.3, 0.9), (0.3, 0.4)], 2),
        ([(None, 0.9), (0.1, 0.8), (0.4, 0.85)], 3),
        ([(0.0, 0.9), (None, 0.2), (0.0, 0.8)], 2),
        ([(None, 0.3), (0.0, 0.6), (None, 0.2)], 3),
        ([(None, None), (None, None)], 2),
        ([(None, 0.4), (None, None)], 2),
    ],
    ids=["losses", "equal", "scores", "then-scores", "perfect", "mixed", "nothing", "no-loss"],
)
def test_where_an_evaluation_has_no_score_the_lower_loss_is_better(
    recorder: RecordingCallback, found: list[tuple[float | None, float | None]], best: int
) -> None:
    assert recorder.best(evaluations(*found))["step"] == best


def test_how_often_there_was_no_score_is_told(recorder: RecordingCallback) -> None:
    assert recorder.notes(evaluations((0.0, 0.5), (0.1, 0.4))) == ()
    (note,) = recorder.notes([{"step": 1, "loss": 1.0}, *evaluations((None, 0.5), (0.1, 0.4))])
    assert note.startswith("validation: mcc is undefined in 1 of 2 evaluations, ")
    assert "which were compared by loss" in note


def folder_of_one_class(place: Path) -> str:
    """A data directory whose validation rows all have one class; returns the setting to read it."""
    words = {"a": "the sea was calm and blue", "A": "the tax rose by two cents"}
    rows = {"train": "aaaA" * 12, "validation": "a" * 8, "test": "aA" * 6}
    for split, labels in rows.items():
        lines = [f"{words[label]} {i},{label}" for i, label in enumerate(labels)]
        (place / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return f"data={{kind: files, path: {place}, max_length: 32}}"


@pytest.mark.slow
def test_a_validation_split_of_one_class_keeps_the_lowest_loss_and_patience_waits_for_it(
    zygote: Zygote, tmp_path: Path
) -> None:
    place, whole, killed = (tmp_path / name for name in ("data", "whole", "killed"))
    for folder in (place, whole, killed):
        folder.mkdir()
    settings = (folder_of_one_class(place), "task.metric=mcc", "training.patience=1")
    settings += ("training.epochs=4", "training.lr=0.003")
    ended = zygote.run(whole, *settings)
    assert ended.code == 0, ended.said
    tried = [line for line in logged(whole) if "eval_score" in line]
    assert [line["eval_score"] for line in tried] == [None] * len(tried)
    losses = [line["eval_loss"] for line in tried]
    assert losses[1] < losses[0] and len(tried) > 2  # the first is not the best, and goes on
    lowest = min(tried, key=lambda line: line["eval_loss"])
    found = record(whole)
    assert found["validation"] == {
        "step": lowest["step"],
        "score": None,
        "loss": lowest["eval_loss"],
    }
    assert f"validation: mcc is undefined in {len(tried)} of {len(tried)}" in str(found["notes"])
    assert "labels 'A', 'a' differ by case alone" in str(found["notes"])
    ended = zygote.run(killed, *settings, before=killed_at(14))
    assert ended.codes == [-signal.SIGKILL], ended.said
    assert zygote.run(killed, *settings).code == 0
    assert result(killed) == result(whole)
    assert record(killed)["validation"] == found["validation"]


@pytest.mark.parametrize(("losses", "chosen"), [((0.6, 0.4, 0.5), 1), ((0.4, None, 0.5), 0)])
def test_rates_none_of_which_has_a_score_are_chosen_by_their_losses(
    losses: tuple[float | None, ...], chosen: int, tmp_path: Path
) -> None:
    recipe = Recipe.load("lora_tiny", "task.metric=mcc")
    search = LearningRateSearch(recipe, Budget(trials=3), {"train": 84, "validation": 1}, tmp_path)
    study, rates = search.study("digest"), search.rates()
    for rate, loss in zip(rates, losses, strict=True):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(rate, rate)})
        for key, value in {"score": None, "loss": loss, "undefined": True, "steps": 9}.items():
            trial.set_user_attr(key, value)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    tuning = search.result(study)
    assert (tuning.metric, tuning.chosen) == ("loss", rates[chosen])
    assert [trial.score for trial in tuning.trials] == list(losses)
    assert {trial.status for trial in tuning.trials} == {"finished"}
