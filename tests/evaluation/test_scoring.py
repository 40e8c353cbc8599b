"""Judging: scores beside the untuned base's, which is asked once for all runs on the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from peftkit.evaluation.baselines import cache
from peftkit.evaluation.baselines.cache import UNTRAINED, predict_untrained
from peftkit.evaluation.scoring import evaluate, warn_if_unbeaten
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.metrics.registry import Score
from peftkit.runtime.distributed import World
from peftkit.tasks.base import EvalSplit
from support.conversations import QUESTIONS, made, stirred, talk

ALONE = World(0, 1, 1, "fp32", "cpu", "none")
TASK = "{kind: instruction_tuning, template: plain, generate: {rows: 3, max_new_tokens: 4}}"


def material(*overrides: str) -> tuple[Any, Any, EvalSplit]:
    """A recipe, its model moved away from the base, and rows to judge them on."""
    recipe = talk("tiny-llama", TASK, *overrides)
    model = stirred(made(recipe))
    found = recipe.task.encode(QUESTIONS, model.tokenizer, (), 64)
    sizes = {"length": [len(ids) for ids in found["input_ids"]]}
    rows, examples = Dataset.from_dict(QUESTIONS), Dataset.from_dict({**found, **sizes})
    return recipe, model, EvalSplit(rows, examples, (), rows, resamples=100)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def asked(recipe: Any, given: EvalSplit, content: str = "rows") -> Any:
    source = find_model(recipe.model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    return predict_untrained(recipe, source, tokenizer, given, content, ALONE)


def test_the_base_is_asked_once_for_all_runs_on_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, _, given = material()
    first = asked(recipe, given)[UNTRAINED]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base is loaded again")

    monkeypatch.setattr(cache, "load_model", never)
    again = asked(recipe.but(strategy="full", **{"training.seed": 3}), given)[UNTRAINED]
    assert again.texts == first.texts and again.loss == first.loss
    np.testing.assert_array_equal(np.stack(again.outputs), np.stack(first.outputs))
    with pytest.raises(AssertionError, match="loaded again"):
        asked(recipe, given, "other rows")
    with pytest.raises(AssertionError, match="loaded again"):
        asked(recipe.but(quantize="4bit"), given)
    monkeypatch.setattr(cache, "execution_environment", lambda _: {"threads": 7})
    with pytest.raises(AssertionError, match="loaded again"):
        asked(recipe, given)


def test_what_training_bought_is_the_difference_of_both_with_its_interval() -> None:
    recipe, model, given = material()
    base = asked(recipe, given)
    said, scored = evaluate(recipe, model, given, base, ALONE)
    assert said is not None and scored is not None
    theirs = scored.baselines["untrained"]
    assert scored.baseline == theirs
    found = scored.details["better_than_untrained"]
    for name in ("bits_per_byte", "loss", "rougeL"):
        ours, sign = scored.scores[name].value, -1 if name != "rougeL" else 1
        assert found[name]["value"] == pytest.approx(sign * (ours - theirs[name].value))  # type: ignore[operator]
    bits = found["bits_per_byte"]
    assert bits["low"] <= bits["value"] <= bits["high"] and bits["n"] == 4
    assert found["rougeL"]["n"] == 3 == scored.details["generated_rows"]


def test_a_model_that_learned_nothing_is_no_better_than_itself() -> None:
    recipe, _, given = material()
    base = asked(recipe, given)
    _, scored = evaluate(recipe, made(recipe), given, base, ALONE)
    assert scored is not None
    for each in scored.details["better_than_untrained"].values():
        assert each["value"] == pytest.approx(0, abs=1e-5)


def score(value: float | None) -> Score:
    return Score(value=value, low=None, high=None, n=9)


@pytest.mark.parametrize(
    ("headline", "ours", "theirs", "unbeaten_by"),
    [
        ("accuracy", 0.7, {"majority class": 0.5, "nearest centroid": 0.72}, "nearest centroid"),
        ("accuracy", 0.7, {"majority class": 0.5, "nearest centroid": 0.69}, None),
        ("accuracy", 0.5, {"majority class": 0.5}, "majority class"),
        ("bits_per_byte", 0.9, {"untrained": 0.8, "4-shot": 0.85}, "untrained"),
        ("bits_per_byte", 0.7, {"untrained": 0.8, "4-shot": 0.85}, None),
        ("spearman", 0.7, {"train's mean": None}, None),
        ("spearman", None, {"train's mean": 0.1}, None),
    ],
)
def test_a_run_that_no_training_equals_says_so(
    headline: str, ours: float | None, theirs: dict[str, float | None], unbeaten_by: str | None
) -> None:
    known = {name: {headline: score(value)} for name, value in theirs.items()}
    notes = warn_if_unbeaten(headline, {headline: score(ours)}, known)
    assert len(notes) == (unbeaten_by is not None)
    if unbeaten_by is not None:
        assert unbeaten_by in notes[0] and f"{ours:.4f}" in notes[0]


def test_a_task_that_compares_with_no_base_asks_none() -> None:
    recipe, _, given = material()
    other = recipe.but(task={"kind": "text_classification", "untrained_baseline": False})
    assert predict_untrained(other, None, None, given, "", ALONE) == {}  # type: ignore[arg-type]
