"""Question answering, multilabel and regression on varied models, merged or exported."""

import random
from pathlib import Path
from typing import Any

import pytest
from test_varied_models import Varied

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.merging.verification import proof, verify
from support.task_rows import Made, labeled, scored, task_recipe
from support.varied_rows import WORDS, Row, Script, written


def questions(script: Script, count: int, seed: int = 0) -> list[Row]:
    """Questions with contexts and the position of the answer."""
    chance = random.Random(f"{script} questions {seed}")
    known = [word for words in WORDS[script].values() for word in words]
    between = "" if script == "Han" else " "
    found = []
    for _ in range(count):
        words = chance.choices(known, k=chance.randint(5, 12))
        place = chance.randrange(1, len(words))
        start = len(between.join(words[:place])) + len(between)
        answers = {"text": [words[place]], "answer_start": [start]}
        question, context = between.join(chance.choices(known, k=3)), between.join(words)
        found.append({"question": question, "context": context, "answers": answers})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "script", "strategy"),
    [
        # whose class for it calls its base otherwise than every other Llama's
        ({"architecture": "llama", "tied": False}, "Han", "{kind: lora, r: 4}"),
        # three labels, which two ends of an answer are not
        ({"architecture": "roberta", "head": "problem_type"}, "Arabic", "full"),
    ],
    ids=["llama", "roberta"],
)
def test_question_answering_is_merged_whatever_the_base_was_trained_for(
    model: dict[str, Any],
    script: Script,
    strategy: str,
    varied: Varied,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = written(tmp_path / "rows", questions, [script])
    recipe = Recipe.load(
        "lora_tiny",
        f"model={varied(**model)}",
        f"data={{kind: files, path: {rows}, max_length: 96}}",
        "task=question_answering",
        f"strategy={strategy}",
        "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.02}",
    )
    peftkit.train(recipe, tmp_path / "runs")
    run = next(path.parent for path in tmp_path.glob("runs/*/record.json"))
    monkeypatch.setattr(proof, "run_verification", lambda spec, merged: verify.main(spec))
    made = peftkit.merge(run, tmp_path / "merged")
    assert made.proof is not None and made.proof.rows == 10
    assert made.proof.largest <= made.proof.tolerance
    row = questions(script, 1, 7)[0]
    answer = peftkit.predict(run, [row])[0]
    assert answer["text"] == row["context"][answer["start"] : answer["end"]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "make"), [("multilabel", labeled), ("regression", scored)])
def test_multilabel_and_regression_runs_are_exported_with_their_score(
    kind: str, make: Made, tmp_path: Path
) -> None:
    recipe = task_recipe({"kind": kind}, make, "tiny-bert", "{kind: adapter}", "none")
    short = recipe.training.model_copy(update={"steps": 2, "batch_size": 8, "threads": 1})
    peftkit.train(recipe.model_copy(update={"training": short}), tmp_path / "runs")
    run = next(path.parent for path in tmp_path.glob("runs/*/record.json"))
    made = peftkit.export(run, tmp_path / "exported")
    assert made.proof is not None and made.proof.before is not None
    # two rows of nearly one value may change places
    assert made.proof.after == pytest.approx(made.proof.before, abs=0.05)
    assert peftkit.export(run, tmp_path / "again", verify=["a text"]).proof.before is None
