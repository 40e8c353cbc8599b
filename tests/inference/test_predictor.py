"""Predict new texts with a finished run: order, lengths, inputs, files."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RunError
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.inference import predictor
from peftkit.inference.files import predict_file
from peftkit.inference.predictor import (
    columns_of,
    format_prediction,
    group_texts,
    inputs_from,
    predict,
)
from peftkit.records.artifact import write_manifest
from peftkit.records.record import RunRecord
from peftkit.records.run_dir import RunDir
from peftkit.runs.reload_check import flat_outputs
from peftkit.runs.reload_check import main as reload_difference
from peftkit.storage.atomic_files import write_text
from support.toy_models import NAMES, load_toy, toy, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run that classifies sport and food, on toy data."""
    recipe = toy("tiny-bert", "strategy=full", "training.threads=1")
    made = load_toy(recipe)
    train(recipe, made, steps=60, lr=2e-3)
    root = tmp_path_factory.mktemp("runs")
    return finished(root, recipe, made)


def finished(root: Path, recipe: Recipe, made: Any) -> Path:
    """A run's directory with the files that prediction reads."""
    model, data = find_model(recipe.model), recipe.data.resolve()
    folder = RunDir.of(root, recipe, model, data)
    folder.path.mkdir(parents=True)
    settings = {"name": recipe.name, **recipe.settings()}
    write_text(folder.path / "recipe.yaml", json.dumps(settings))
    facts = {"model": model.model_dump(), "names": list(NAMES), "world": {"precision": "fp32"}}
    write_text(folder.path / "run.json", json.dumps(facts))
    folder.artifact.mkdir()
    recipe.strategy.save(made.module, folder.artifact)
    write_manifest(folder.artifact, recipe, model, NAMES)
    record = RunRecord(
        name=recipe.name,
        digest=recipe.digest(model, data),
        status="finished",
        recipe=recipe.settings(),
        model=model,
        data=data,
        rows={},
        notes=[],
        headline="accuracy",
    )
    write_text(folder.path / "record.json", record.model_dump_json())
    return folder.path


SPORT = "the goal team was a match"
FOOD = "bread soup and cheese near the kitchen"


def texts(count: int) -> list[str]:
    """Texts of random lengths."""
    chance = random.Random(0)
    words = f"{SPORT} {FOOD}".split()
    return [" ".join(chance.choices(words, k=chance.randint(1, 25))) for _ in range(count)]


def test_each_text_has_a_label_and_probabilities(run: Path) -> None:
    sport, food = predict(run, [SPORT, FOOD])
    assert (sport["label"], food["label"]) == ("sport", "food")
    assert list(sport["probabilities"]) == list(NAMES)
    assert sum(food["probabilities"].values()) == pytest.approx(1)


def test_order_is_kept_through_sorting_and_chunks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = texts(23)
    monkeypatch.setattr(predictor, "CHUNK", 5)
    monkeypatch.setattr(predictor, "MAX_TOKENS", 40)
    together = predict(run, iter(given))
    monkeypatch.setattr(predictor, "CHUNK", 1)
    for alone, said in zip(predict(run, given), together, strict=True):
        assert said["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_a_text_longer_than_the_limit_is_cut(run: Path) -> None:
    (said,) = predict(run, [" ".join(["goal"] * 500)])
    assert said["label"] == "sport"


def test_no_texts_give_no_predictions(run: Path) -> None:
    assert predict(run, []) == []


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_text_is_named_by_its_number(
    run: Path, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "CHUNK", 2)
    with pytest.raises(DataError, match="text 4 is empty - there is nothing to predict"):
        predict(run, [SPORT, FOOD, SPORT, empty, FOOD])


def test_a_string_is_not_iterated_by_characters(run: Path) -> None:
    with pytest.raises(DataError, match="expected a list of texts"):
        predict(run, SPORT)


def test_pairs_are_required_if_the_run_reads_pairs_and_refused_otherwise(run: Path) -> None:
    with pytest.raises(DataError, match=r"text 2: 2 values for \(text\)"):
        predict(run, [SPORT, (SPORT, FOOD)])
    pairs = inputs_from(toy("tiny-bert"), ["text", "text_pair"])
    with pytest.raises(DataError, match=r"text 7: 1 values for \(text, text_pair\)"):
        columns_of([SPORT], 7, pairs)
    both = columns_of([("a", "b"), ("c", "d")], 1, pairs)
    assert both == {"text": ["a", "c"], "text_pair": ["b", "d"]}
    with pytest.raises(DataError, match="text 1 is empty"):
        columns_of([("a", "")], 1, pairs)


def test_an_old_run_reads_the_inputs_of_its_recipe() -> None:
    recipe = toy("tiny-bert")
    assert inputs_from(recipe, None).required == ("text",)
    assert inputs_from(recipe.but(data__text_pair="other"), None).required == ("text", "text_pair")


def test_mappings_name_roles_or_the_runs_columns_and_may_hold_more() -> None:
    recipe = toy("tiny-bert").but(data__text="body", data__text_pair="title")
    inputs = inputs_from(recipe, ["text", "text_pair"])
    rows = [{"body": "a", "title": "b", "id": 3}, {"text": "c", "text_pair": "d"}]
    assert columns_of(rows, 1, inputs) == {"text": ["a", "c"], "text_pair": ["b", "d"]}
    with pytest.raises(DataError, match="text 5 has no text_pair - there is nothing to predict"):
        columns_of([{"body": "a", "title": " "}], 5, inputs)


def test_questions_require_their_context_and_texts_are_grouped_into_rows() -> None:
    inputs = inputs_from(toy("tiny-bert", "task=question_answering"), None)
    assert inputs.required == ("question", "context")
    rows = group_texts(["who?", "Ada did.", "what?", "A loom."], inputs)
    assert rows == [("who?", "Ada did."), ("what?", "A loom.")]
    with pytest.raises(DataError, match=r"a row has 2 texts \(question, context\), and 3 are"):
        group_texts(["who?", "Ada did.", "what?"], inputs)


def test_a_conversation_may_be_in_any_format() -> None:
    inputs = inputs_from(toy("tiny-llama", "task=instruction_tuning"), ["instruction", "input"])
    assert columns_of(["Say hello"], 1, inputs) == {"prompt": ["Say hello"]}
    messages = [{"role": "user", "content": "hello"}]
    assert columns_of([{"messages": messages}], 1, inputs) == {"messages": [messages]}
    with pytest.raises(DataError, match="text 1 is empty"):
        columns_of([{"other": "x"}], 1, inputs)


def test_predictions_are_formatted_on_one_line() -> None:
    said = {"label": "food", "probabilities": {"food": 0.75, "sport": 0.25}}
    assert format_prediction(said) == "food\tfood 0.7500  sport 0.2500"
    assert (
        format_prediction({"value": 3.25}) == "3.2500"
        and format_prediction({"generated": "Hello."}) == "Hello."
    )
    entity = {"type": "PER", "text": "Ada", "start": 0, "end": 3, "probability": 0.9}
    assert (
        format_prediction({"words": ["Ada"], "tags": ["B-PER"], "entities": [entity]}) == "Ada PER"
    )
    assert format_prediction({"words": ["a", "b"], "tags": ["DT", "NN"]}) == "a b\tDT NN"


def test_an_unfinished_run_cannot_predict(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a finished run"):
        predict(tmp_path, [SPORT])


def test_another_base_model_is_refused(run: Path, tmp_path: Path) -> None:
    said = json.loads((run / "run.json").read_text())
    for path in run.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "run.json").unlink()
    said["model"]["identity"] = "sha256:another"
    said["model"]["location"] = "/gone"
    (tmp_path / "run.json").write_text(json.dumps(said))
    with pytest.raises(RunError, match="was trained on another tiny-bert"):
        predict(tmp_path, [SPORT])


def test_a_file_is_predicted_row_by_row_and_keeps_its_columns(run: Path, tmp_path: Path) -> None:
    given, scored = tmp_path / "texts.csv", tmp_path / "scored.csv"
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts(7))]
    with open(given, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert predict_file(run, given, scored) == 7
    with open(scored, newline="") as file:
        found = list(csv.DictReader(file))
    assert [{k: row[k] for k in ("id", "text")} for row in found] == rows
    expected = predict(run, [row["text"] for row in rows])
    assert [row["predicted"] for row in found] == [said["label"] for said in expected]
    assert float(found[0]["probability[sport]"]) == pytest.approx(
        expected[0]["probabilities"]["sport"], abs=1e-6
    )


def test_a_file_without_the_column_or_with_a_short_or_empty_row_is_refused(
    run: Path, tmp_path: Path
) -> None:
    lacking, short, empty = (tmp_path / f"{name}.csv" for name in ("lacking", "short", "empty"))
    lacking.write_text("id,txt\n1,a goal\n")
    with pytest.raises(DataError, match="has no column 'text' - did you mean 'txt'"):
        predict_file(run, lacking, None)
    short.write_text("id,text\n1,a goal\n2\n")
    with pytest.raises(DataError, match=r"short.csv, line 3: has 1 fields, but the header has 2"):
        predict_file(run, short, tmp_path / "scored.csv")
    empty.write_text("id,text\n1,a goal\n2,\n")
    with pytest.raises(DataError, match="text 2 is empty"):
        predict_file(run, empty, tmp_path / "scored.csv")
    assert not (tmp_path / "scored.csv").exists()
    with pytest.raises(DataError, match="there is no such file"):
        predict_file(run, tmp_path / "none.csv", None)
    with pytest.raises(DataError, match=r"scored.xlsx: should end in .csv or .jsonl"):
        predict_file(run, empty, tmp_path / "scored.xlsx")
    odd = tmp_path / "texts.doc"
    odd.touch()
    with pytest.raises(DataError, match=r"unknown format - save it as one of .*csv, .*tsv"):
        predict_file(run, odd, None)


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_bytes_are_read_as_text_and_written_as_text_or_base64(
    ending: str, run: Path, tmp_path: Path
) -> None:
    columns = {"text": [SPORT.encode(), FOOD.encode()], "icon": [b"\xff\xd8", b"plain"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    scored = tmp_path / f"said{ending}"
    assert predict_file(run, tmp_path / "rows.parquet", scored) == 2
    with open(scored, newline="") as file:
        found = list(map(json.loads, file) if ending == ".jsonl" else csv.DictReader(file))
    assert [row["icon"] for row in found] == ["/9g=", "plain"]
    assert [row["text"] for row in found] == [SPORT, FOOD]
    assert [row.get("label", row.get("predicted")) for row in found] == ["sport", "food"]


def test_a_lone_surrogate_in_another_column_is_kept(run: Path, tmp_path: Path) -> None:
    row = '{"text": "the goal", "note": "half \\ud800"}'
    (tmp_path / "rows.jsonl").write_text(row)
    predict_file(run, tmp_path / "rows.jsonl", tmp_path / "said.jsonl")
    (said,) = (tmp_path / "said.jsonl").read_text().splitlines()
    assert json.loads(said)["note"] == "half \ud800"


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".tsv", ".parquet"])
def test_files_of_every_format_are_read_and_predictions_are_added_as_columns(
    ending: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "CHUNK", 2)
    rows = [{"label": i, "text": text} for i, text in enumerate(texts(5))]
    source = tmp_path / f"texts{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    elif ending == ".tsv":
        source.write_text("label\ttext\n" + "".join(f"{r['label']}\t{r['text']}\n" for r in rows))
    else:
        lines = [json.dumps(row) for row in rows]
        text = "\n".join(lines) if ending == ".jsonl" else f"[{', '.join(lines)}]"
        source.write_text(text)
    assert predict_file(run, source, tmp_path / "said.jsonl") == 5
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    expected = predict(run, [row["text"] for row in rows])
    for line, row, answer in zip(said, rows, expected, strict=True):
        assert (str(line["label"]), line["text"]) == (str(row["label"]), row["text"])
        assert line["predicted_label"] == answer["label"]
        assert line["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


def test_csv_holds_lists_as_json_and_refuses_columns_that_the_first_row_lacks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.jsonl"
    rows: list[dict[str, Any]] = [{"text": SPORT, "predicted": "x", "at": [1, 2]}, {"text": FOOD}]
    source.write_text("\n".join(map(json.dumps, rows)))
    assert predict_file(run, source, None) == 2
    first, second = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (first["predicted"], first["at"], first["predicted_predicted"]) == (
        "x",
        "[1, 2]",
        "sport",
    )
    assert (second["predicted_predicted"], second["predicted"], second["at"]) == ("food", "", "")
    source.write_text("\n".join(map(json.dumps, [*rows, {"text": FOOD, "late": 1}])))
    with pytest.raises(DataError, match="row 3 has a column 'late' that the first row lacks"):
        predict_file(run, source, tmp_path / "said.csv")


def test_reloading_returns_the_largest_difference_of_a_probability(run: Path) -> None:
    recipe, assembled_again, _ = predictor.load_run(run)
    rows = [{"input_ids": [2, 60 + i, 3], "token_type_ids": [0] * 3, "labels": 0} for i in range(3)]
    said = flat_outputs(recipe, assembled_again, rows)
    probe = run / "reload.json"
    probe.write_text(json.dumps({"rows": rows, "outputs": said.tolist()}))
    assert reload_difference(run) == 0
    said[2] += 0.25
    probe.write_text(json.dumps({"rows": rows, "outputs": said.tolist()}))
    assert reload_difference(run) == pytest.approx(0.25)


def test_the_source_of_the_base_is_that_of_the_run(run: Path) -> None:
    said = json.loads((run / "run.json").read_text())
    assert Source.model_validate(said["model"]) == find_model("tiny-bert")
