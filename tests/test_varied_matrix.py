"""Varied models, from their rows to the merged or exported result, which predicts as the run."""

import importlib.util
import json
import runpy
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    pipeline,
)

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.merging.verification import proof, verify
from peftkit.text.conversations import user_message
from support.pairwise import Axes, Rule, broken, each_value, pairs_of
from support.varied_cases import GENERATE, WAYS, Case, cases, chosen, values_of
from support.varied_models import WITH_ENCODER, build

torch.set_num_threads(1)
LENGTH = {"max_new_tokens": GENERATE["max_new_tokens"], "do_sample": False}


@pytest.mark.slow
@pytest.mark.parametrize("case", chosen(), ids=str)
def test_the_merged_or_exported_model_predicts_as_the_run(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    model = build(case.model, models)
    recipe = case.recipe(model, models)
    peftkit.train(recipe, tmp_path / "runs")
    run = next(path.parent for path in tmp_path.glob("runs/*/record.json"))
    rows, recorded = recorded_answers(case, recipe, run)
    predictions = peftkit.predict(run, rows)
    assert_same(case, predictions, recorded, 1e-5)

    # the proof in this process instead of its own
    monkeypatch.setattr(proof, "run_verification", lambda spec, merged: verify.main(spec))
    to = tmp_path / "result"
    if case.handed == "merged":
        assert peftkit.merge(run, to).proof is not None
        found = merged_answers(case, to, rows)
    else:
        peftkit.export(run, to, verify="off")
        found = exported_answers(case, to, rows)
    assert_same(case, predictions, found, 2e-2 if WAYS[case.way][1] == "4bit" else 1e-4)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of models and rows, each written once."""
    return tmp_path_factory.mktemp("varied")


def recorded_answers(
    case: Case, recipe: Recipe, run: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inputs of the run's test rows, and their recorded predictions."""
    path = Path(recipe.data.path) / "test.jsonl"
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    lines = map(json.loads, (run / "predictions.jsonl").read_text("utf-8").splitlines())
    names = json.loads((run / "run.json").read_text("utf-8"))["names"]
    inputs, found = [], []
    for row, line in zip(rows, lines, strict=True):
        if case.task == "text_classification":
            line = {"probabilities": dict(zip(names, line["probabilities"], strict=True))}
        elif "generated" not in line:
            continue
        if case.task == "text_generation":
            row = {"text": recipe.task.prompt_rows({"text": [row["text"]]})["text"][0]}
        inputs.append(row)
        found.append(line)
    return inputs, found


def merged_answers(
    case: Case, folder: Path, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The predictions of plain transformers."""
    if case.task == "text_classification":
        classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
        predictions = classify([row["text"] for row in rows])
        return [{"probabilities": {e["label"]: e["score"] for e in each}} for each in predictions]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encodes = case.model.architecture in WITH_ENCODER
    opens = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    model, report = opens.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    found = []
    for row in rows:
        ids = torch.tensor([prompt(case, tokenizer, row)])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **LENGTH)[0]
        new = output if encodes else output[ids.shape[1] :]
        found.append({"generated": tokenizer.decode(new, skip_special_tokens=True).strip()})
    return found


def prompt(case: Case, tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """The token ids of the model's input for a row."""
    if case.task == "text_generation":
        ids: list[int] = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        return [tokenizer.bos_token_id, *ids]
    if case.model.architecture in WITH_ENCODER:
        return list(tokenizer(row["source"])["input_ids"])
    messages = row.get("messages") or [user_message(f"Translate this text: {row['source']}"), {}]
    encoded = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def exported_answers(
    case: Case, folder: Path, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The predictions of the exported code."""
    load = module_at(folder / "load.py")
    model, tokenizer = load.load(folder)
    if case.task == "text_classification":
        logits = load.logits_of(model, tokenizer, [row["text"] for row in rows])
        names = [model.config.id2label[index] for index in range(logits.shape[1])]
        found = logits.softmax(-1).tolist()
        return [{"probabilities": dict(zip(names, each, strict=True))} for each in found]
    columns = {"translation": "source", "text_generation": "text"}
    texts = [row["messages"][:-1] if "messages" in row else row[columns[case.task]] for row in rows]
    generate = runpy.run_path(str(folder / "generate.py"))["generate"]
    return [{"generated": text} for text in generate(model, tokenizer, texts, **LENGTH)]


def module_at(path: Path) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(
    case: Case, expected: Sequence[Any], found: Sequence[Any], tolerance: float
) -> None:
    """Assert that predictions are equal, probabilities up to `tolerance`."""
    if case.task == "text_classification":
        for one, other in zip(expected, found, strict=True):
            assert other["probabilities"] == pytest.approx(one["probabilities"], abs=tolerance)
    else:
        assert [each["generated"] for each in found] == [each["generated"] for each in expected]


def test_every_compatible_pair_of_values_is_covered_and_no_other() -> None:
    values = {
        "size": (1, 2, 3),
        "color": ("red", "blue"),
        "shape": ("round", "flat", "long", "odd"),
    }
    rules: dict[str, Rule] = {
        "flat is large": lambda size, shape: shape != "flat" or size > 1,
        "odd and blue is small": lambda size, color, shape: (
            (color, shape) != ("blue", "odd") or size == 1
        ),
    }
    whole = [dict(zip(values, found, strict=True)) for found in product(*values.values())]
    possible = [found for found in whole if not broken(found, rules)]
    found = list(Axes(values, rules).covering())
    assert all(each in possible for each in found)
    assert set().union(*map(pairs_of, found)) == set().union(*map(pairs_of, possible))
    assert len(found) < len(possible)
    few = each_value(found, lambda each: each)
    assert {pair for each in few for pair in each.items()} == {
        pair for each in possible for pair in each.items()
    }


def test_the_matrix_has_each_axis_value_with_each_other_axis() -> None:
    met = set().union(*(pairs_of(values_of(case)) for case in cases()))
    assert len(cases()) == len(set(cases()))
    for one, other in combinations(values_of(cases()[0]), 2):
        firsts = {dict(pair)[one] for pair in met if {one, other} == dict(pair).keys()}
        assert firsts == {values_of(case)[one] for case in cases()}
