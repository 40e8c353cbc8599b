"""Artifacts: sealed when saved; refused when cut, changed, pickled or another base's."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import peftkit
from peftkit.cli.tables import record_rows
from peftkit.errors import RunError
from peftkit.hub.fingerprint import base_fingerprint
from peftkit.hub.resolve import find_model
from peftkit.records.artifact import MANIFEST, check, write_manifest
from peftkit.records.record import RunRecord
from peftkit.runs.model_card import model_card
from peftkit.tasks.base import Task
from support.toy_models import NAMES, load_toy, toy

SETTINGS = (
    "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.01}",
)
TEXT = "the team had a coach near the stadium"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run whose base is a folder."""
    return trained(tmp_path_factory.mktemp("lora"), "lora")


def trained(folder: Path, strategy: str) -> Path:
    base = shutil.copytree(find_model("tiny-bert").location, folder / "base")
    recipe = toy("tiny-bert", *SETTINGS, f"strategy={strategy}").but(model=str(base))
    peftkit.train(recipe, folder)
    return next(path.parent for path in folder.glob("*/record.json"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoiled."""
    return shutil.copytree(run, tmp_path / run.name)


def test_a_run_whose_artifact_is_whole_predicts(copy: Path) -> None:
    assert peftkit.predict(copy, [TEXT])[0]["label"] in NAMES


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "{name} has [0-9]+ bytes, not [0-9]+ - take it from a copy"),
        (change, "{name} was changed - take it from a copy"),
        (Path.unlink, "{name} is missing - take it from a copy"),
    ],
)
def test_a_spoiled_file_is_refused_by_name(
    copy: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy / "artifact" / name)
    with pytest.raises(RunError, match=message.format(name=re.escape(name))):
        peftkit.predict(copy, [TEXT])


def test_an_artifact_without_its_seal_is_refused(copy: Path) -> None:
    (copy / "artifact" / MANIFEST).unlink()
    with pytest.raises(RunError, match=r"is no artifact of peftkit: artifact.json is missing"):
        peftkit.predict(copy, [TEXT])


def test_an_artifact_of_a_later_format_is_refused(copy: Path) -> None:
    path = copy / "artifact" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(RunError, match="has format 99, this peftkit reads 2"):
        peftkit.predict(copy, [TEXT])


def test_a_pickle_is_refused_and_the_safetensors_way_named(copy: Path) -> None:
    artifact = copy / "artifact"
    (artifact / "adapter_model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, artifact / "adapter_model.bin")
    with pytest.raises(
        RunError, match=r"as a pickle \(adapter_model.bin\).*safetensors.torch.save_"
    ):
        peftkit.predict(copy, [TEXT])


def test_the_artifact_of_another_base_is_refused(tmp_path: Path) -> None:
    recipe, bert = toy("tiny-bert"), find_model("tiny-bert")
    recipe.strategy.save(load_toy(recipe).module, tmp_path)
    write_manifest(tmp_path, recipe, bert, NAMES)
    assert check(tmp_path, bert)["labels"] == list(NAMES)
    with pytest.raises(
        RunError, match=r"was trained on tiny-bert, whose .* not those of tiny-elect"
    ):
        check(tmp_path, find_model("tiny-electra"))


def test_a_fingerprint_is_of_shapes_and_configuration_not_of_training(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(find_model("tiny-bert").location, tmp_path / "base"))
    was = base_fingerprint(base)
    tensors = load_file(base / "model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    for key, value in {"hidden_dropout_prob": 0.5, "transformers_version": "0"}.items():
        (base / "config.json").write_text(json.dumps({**config, key: value}))
        assert base_fingerprint(base) == was
    (base / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    assert base_fingerprint(base) != was
    (base / "config.json").write_text(json.dumps(config))
    save_file({"only": torch.zeros(1)}, base / "model.safetensors")
    assert base_fingerprint(base) != was


def test_the_seal_names_no_folder_of_this_machine(run: Path) -> None:
    base = json.loads((run / "artifact" / MANIFEST).read_text())["base"]
    assert set(base) == {"requested", "used", "identity", "note", "fingerprint"}


def test_the_card_says_what_the_record_says(run: Path) -> None:
    card = (run / "artifact" / "README.md").read_text()
    record = peftkit.train(peftkit.Recipe.load(str(run / "recipe.yaml")), run.parent)
    counted, score = record.parameters, record.scores["accuracy"]
    assert counted is not None
    assert f"| trainable | {counted.trainable:,} of {counted.total:,} " in card
    assert (
        f"| accuracy | {score.value:.4f} [{score.low:.4f}, {score.high:.4f}], n = {score.n}" in card
    )
    assert record.model.identity in card and record.data.identity in card
    assert record_rows(record)[0]["value"].startswith("lora_tiny")


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_the_cards_code_loads_the_artifact_without_peftkit(strategy: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, strategy)
    card = (folder / "artifact" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    assert "peftkit" not in code
    code = code.replace('"ARTIFACT"', repr(str(folder / "artifact")))
    code += (
        "import torch\n"
        f"tokens = tokenizer([{TEXT!r}], return_tensors='pt')\n"
        "print(*model.float().eval()(**tokens).logits.softmax(-1)[0].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = [float(word) for word in done.stdout.split()]
    here = list(peftkit.predict(folder, [TEXT])[0]["probabilities"].values())
    assert there == pytest.approx(here, abs=1e-5)


def test_the_card_of_what_peftkit_alone_loads_says_so(tmp_path: Path) -> None:
    card = (trained(tmp_path, "adapter") / "artifact" / "README.md").read_text()
    assert "library_name: peftkit\n" in card
    assert "PeftModel" not in card


@pytest.mark.parametrize(
    ("task", "model", "loader", "example"),
    [
        ("token_classification", "tiny-bert", "AutoModelForTokenClassification", '["..."]'),
        ("question_answering", "tiny-bert", "AutoModelForQuestionAnswering", '[("...", "...")]'),
        ("instruction_tuning", "tiny-llama", "AutoModelForCausalLM", '["..."]'),
        ("translation", "tiny-t5", "AutoModelForSeq2SeqLM", '["..."]'),
        ("regression", "tiny-bert", "AutoModelForSequenceClassification", '["..."]'),
    ],
)
def test_a_card_loads_by_the_class_of_its_task(
    task: str, model: str, loader: str, example: str, run: Path
) -> None:
    said = json.loads((run / "record.json").read_text())
    said["recipe"] |= {"task": {"kind": task}, "model": model}
    said["model"] = find_model(model).model_dump()
    low = {"low": None, "high": None, "n": 9}
    said |= {
        "headline": "rmse",
        "scores": {"rmse": {"value": 0.5, **low}},
        "baselines": {"untrained": {"rmse": {"value": 2.0, **low}}},
    }
    card = model_card(RunRecord.model_validate(said))
    assert f"import {loader}, " in card or f"import {loader}\n" in card
    assert f'peftkit.predict("FOLDER_OF_THE_RUN", {example})' in card
    assert f"pipeline_tag: {Task.kinds()[task].pipeline_tag}\n" in card
    assert "| rmse (less is better) | 0.5000, n = 9 |" in card
    assert "| rmse, untrained | 2.0000, n = 9 |" in card
