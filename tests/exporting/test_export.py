"""Exporting runs: folders that open themselves, say what the run says, or are not there."""

import ast
import csv
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit
from peftkit.cli.main import main
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.exporting import export
from peftkit.exporting.proof import Rows, prove
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source, sha256_of
from peftkit.inference.predictor import load_run
from peftkit.models import exported as exported_code
from peftkit.records.artifact import write_manifest
from peftkit.records.run_dir import RunDir
from peftkit.strategies.base import Strategy
from peftkit.text import special_token_text
from support.run_processes import ENVIRONMENT, tensors
from support.toy_models import toy
from support.varied_models import VariedModel, build
from support.varied_rows import classified, written

SETTINGS = (
    "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.05}",
)
TEXTS = [
    "the coach was near the stadium with a trophy",
    "soup and bread",
    "we had a recipe for pepper soup after the match " * 5,
]
ADAPTER = "strategy={kind: adapter, activation: gelu}"


def trained(folder: Path, *settings: str, model: str = "tiny-bert") -> Path:
    """A finished run."""
    peftkit.train(toy(model, *SETTINGS, *settings), folder)
    return next(path.parent for path in folder.glob("*/record.json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with bottlenecks."""
    return trained(tmp_path_factory.mktemp("adapter"), ADAPTER)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run."""
    return trained(tmp_path_factory.mktemp("lora"), "strategy={kind: lora, r: 4}")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with bottlenecks, exported and not proven."""
    to = tmp_path_factory.mktemp("exported") / "adapter"
    peftkit.export(run, to, verify="off")
    return to


def opened(folder: Path) -> Any:
    """The folder's own `load.py`, as a module."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probabilities(folder: Path, base: Path | None = None, pairs: Any = None) -> torch.Tensor:
    """What the folder's own code says of the texts, as one padded batch."""
    load = opened(folder)
    model, tokenizer = load.load(folder, base)
    found: torch.Tensor = load.logits_of(model, tokenizer, TEXTS, pairs).softmax(-1)
    return found


def predicted(run: Path, texts: Any = TEXTS) -> torch.Tensor:
    """What the run says of them."""
    said = peftkit.predict(run, texts)
    return torch.tensor([list(each["probabilities"].values()) for each in said])


def test_a_run_is_exported_proven_and_its_card_runs_without_peftkit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "served"
    assert main(["export", str(run), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"logits differ\tlargest .* on 16 of the run's held-out rows", said)
    assert re.search(r"accuracy\t\S+ before, \S+ after \(n=16\)", said)
    assert "merge" not in said
    made = json.loads((to / "export.json").read_text())
    assert made["proof"]["largest"] < 1e-5 < made["proof"]["tolerance"]
    assert (made["held"], made["changed"], made["mergeable"]) == ("embedded", 0, False)
    before, after = tensors(Path(find_model("tiny-bert").location)), tensors(to / "base")
    assert made["copied"] == len(after) > 0
    assert all(after[name] == before[name] for name in after)
    assert not list(to.rglob("__pycache__"))
    card = (to / "README.md").read_text()
    assert "vLLM and TGI take LoRA" in card
    [typed, code] = re.findall(r"```(?:python)?\n(.*?)```", card, flags=re.DOTALL)
    command = typed.splitlines()[1].removeprefix("python ").replace('"a text"', "")
    hide = "import sys; sys.modules['peftkit'] = sys.modules['peft'] = None; sys.path[0] = '.'\n"
    again = "import runpy; sys.argv = ['load.py', 'soup and bread']; "
    again += f"runpy.run_path({command.split()[0]!r}, run_name='__main__')"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"{hide}{code}\n{again}"],
        cwd=to,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    label, chances, text = done.stdout.splitlines()[-1].split("\t")
    [ours] = peftkit.predict(run, ["soup and bread"])
    assert (label, text) == (ours["label"], "soup and bread")
    assert f"{label} {ours['probabilities'][label]:.4f}" in chances


CELLS = [
    ("tiny-llama", "{kind: adapter, variant: parallel, scale: 2.0}"),
    ("tiny-t5", "{kind: adapter, variant: houlsby}"),
    ("tiny-llama", "compacter"),
    ("tiny-roberta", "{kind: p_tuning, num_virtual_tokens: 4, encoder: lstm}"),
    ("tiny-bert", "{kind: prompt, num_virtual_tokens: 4}"),
    ("tiny-llama", "{kind: prompt, num_virtual_tokens: 4}"),
    ("tiny-bert", "{kind: prefix, num_virtual_tokens: 4}"),
    ("tiny-llama", "{kind: prefix, num_virtual_tokens: 4, prefix_projection: true}"),
    ("tiny-t5", "{kind: prefix, num_virtual_tokens: 4}"),
    ("tiny-bert", "mam"),
    ("tiny-llama", "[{kind: dora, r: 4}, {kind: prefix, num_virtual_tokens: 4}, layernorm]"),
    ("tiny-bert", "[{kind: p_tuning, num_virtual_tokens: 4}, bitfit, adapter]"),
]


@pytest.mark.parametrize(("model", "strategy"), CELLS)
def test_what_cannot_be_folded_says_the_same_by_its_own_code(
    model: str, strategy: str, tmp_path: Path
) -> None:
    run = trained(tmp_path / "runs", f"strategy={strategy}", model=model)
    made = peftkit.export(run, tmp_path / "to", verify="off")
    assert not made.mergeable and made.proof is None
    assert (made.changed > 0) == ("layernorm" in strategy or "bitfit" in strategy)
    assert torch.allclose(probabilities(tmp_path / "to"), predicted(run), atol=1e-5)


def test_every_kind_that_cannot_be_merged_defines_its_exported_modules() -> None:
    needs_settings = {"combination", "peft"}
    not_mergeable = {
        kind
        for kind in set(Strategy.kinds()) - needs_settings
        if not Strategy.parse(kind, "s").mergeable
    }
    assert {"adapter", "compacter", "prompt", "p_tuning", "prefix"} <= not_mergeable
    for kind in not_mergeable:
        assert type(Strategy.parse(kind, "s")).exported_modules is not Strategy.exported_modules, (
            kind
        )


@pytest.mark.parametrize(("quantize", "near"), [("4bit", 1e-3), ("8bit", 2e-2)])
def test_a_quantized_base_is_exported_as_it_was_trained_against(
    quantize: str, near: float, tmp_path: Path
) -> None:
    run = trained(tmp_path / "runs", ADAPTER, f"quantize={quantize}")
    made = peftkit.export(run, tmp_path / "to", verify="off")
    assert made.dequantized_from == quantize and made.changed > 0
    apart = (probabilities(tmp_path / "to") - predicted(run)).abs().max()
    assert apart < near
    with pytest.raises(RunError, match=f"was trained on its {quantize} weights.*--base embed"):
        peftkit.export(run, tmp_path / "other", base="reference", verify="off")


def test_a_run_that_reads_pairs_is_exported(tmp_path: Path) -> None:
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        rows = [(f"goal match {n}", f"soup bread {n % 7}", "ab"[n % 2]) for n in range(64)]
        csv.writer(file).writerows([("one", "two", "label"), *rows])
    columns = "text: one, text_pair: two, max_length: 64"
    data = f"{{kind: files, path: {tmp_path / 'pairs.csv'}, {columns}}}"
    made = Recipe.load("lora_tiny", "model=tiny-bert", f"data={data}", *SETTINGS, ADAPTER)
    peftkit.train(made, tmp_path / "runs")
    run = next(path.parent for path in (tmp_path / "runs").glob("*/record.json"))
    peftkit.export(run, tmp_path / "to", verify="off")
    seconds = ["a b", "c", "near the match"]
    ours = predicted(run, list(zip(TEXTS, seconds, strict=True)))
    assert torch.allclose(probabilities(tmp_path / "to", pairs=seconds), ours, atol=1e-5)
    assert '"a text" "its pair"' in (tmp_path / "to" / "README.md").read_text()


def test_a_base_with_a_head_of_other_labels_is_exported_and_reads_special_tokens_as_text(
    tmp_path: Path,
) -> None:
    base = build(VariedModel("bert", head="fewer"), tmp_path / "bases")
    rows = written(tmp_path / "rows", classified, ("Latin",))
    data = f"data={{kind: files, path: {rows}, max_length: 32}}"
    quiet = ("training.dropout=0", ADAPTER, *SETTINGS)
    peftkit.train(Recipe.load("lora_tiny", f"model={base}", data, *quiet), tmp_path / "runs")
    run = next(path.parent for path in (tmp_path / "runs").glob("*/record.json"))
    peftkit.export(run, tmp_path / "to", base="reference", verify="off")
    texts = ["near the old bridge", "near the [SEP] old [PAD] bridge", "[CLS] never"]
    load = opened(tmp_path / "to")
    found = load.logits_of(*load.load(tmp_path / "to", base), texts).softmax(-1)
    assert found.shape == (3, 3)
    assert torch.allclose(found, predicted(run, texts), atol=1e-5)


def test_a_base_that_is_named_is_checked_when_it_is_loaded(run: Path, tmp_path: Path) -> None:
    to, base = tmp_path / "to", Path(find_model("tiny-bert").location)
    made = peftkit.export(run, to, base="reference")
    assert made.proof is not None and made.proof.largest < 1e-5
    assert (made.held, made.num_bytes) == ("referred", 0) and not (to / "base").exists()
    assert "--base FOLDER_OF_THE_BASE" in (to / "README.md").read_text()
    assert torch.allclose(probabilities(to, base), predicted(run), atol=1e-5)
    with pytest.raises(ValueError, match="the base tiny-bert is not in here - say where"):
        probabilities(to)
    spoiled = tmp_path / "spoiled"
    shutil.copytree(base, spoiled)
    moved = {n: t + 1 for n, t in load_file(spoiled / "model.safetensors").items()}
    save_file(moved, spoiled / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not the file that belongs here"):
        probabilities(to, spoiled)


def test_a_run_that_can_be_merged_is_exported_and_told_so(
    folded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    assert main(["export", str(folded), "--to", str(to), "--verify", "off"]) == 0
    said = capsys.readouterr().out
    assert "verified\tno" in said
    assert f"simpler\tpeftkit merge {folded} --to DIR gives an ordinary checkpoint" in said
    assert torch.allclose(probabilities(to), predicted(folded), atol=1e-5)
    assert "gives an ordinary\ncheckpoint" in (to / "README.md").read_text()
    with pytest.raises(RunError, match="'strategy: lora' changed its own weights"):
        peftkit.export(folded, tmp_path / "other", base="reference", verify="off")


def test_a_folder_that_says_something_else_is_removed(folded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folded, run)
    path = run / "artifact" / "adapter_config.json"
    said = json.loads(path.read_text())
    # PEFT then leaves out what the folder holds for the others, and the weights do not
    path.write_text(json.dumps({**said, "target_modules": said["target_modules"][:1]}))
    folder = RunDir(run)
    source = Source.model_validate(folder.description()["model"])
    write_manifest(folder.artifact, folder.recipe, source, tuple(folder.description()["names"]))
    with pytest.raises(RunError, match=r"predictions differ from the run's: in 16 texts a logit"):
        peftkit.export(run, tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_proof_sees_a_bottleneck_that_is_not_the_runs(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    shutil.copytree(exported, to)
    found = load_file(to / "adapter.safetensors")
    changed = next(name for name in found if name.endswith("adapter_feed_forward.2.weight"))
    found[changed] = found[changed] * 0
    save_file(found, to / "adapter.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not the file that belongs here"):
        probabilities(to)
    said = json.loads((to / "loading.json").read_text())
    said["trained"] = sha256_of(to / "adapter.safetensors")
    (to / "loading.json").write_text(json.dumps(said))
    recipe, assembled, names = load_run(run)
    rows = Rows(RunDir(run), recipe, TEXTS)
    rows.query(recipe, assembled, names)
    with pytest.raises(RunError, match=r"in 3 texts a logit differs by .* it was removed"):
        prove(to, None, rows, names, "float32", None)


def test_the_loader_takes_every_tensor_and_lacks_none(exported: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    shutil.copytree(exported, to)
    said = json.loads((to / "loading.json").read_text())
    (to / "loading.json").write_text(json.dumps({**said, "modules": said["modules"][1:]}))
    with pytest.raises(ValueError, match=r"holds what nothing takes: .*adapter_feed_forward"):
        probabilities(to)
    (to / "loading.json").write_text(json.dumps(said))
    kept = load_file(to / "base" / "model.safetensors")
    del kept["encoder.layer.0.output.dense.weight"]
    save_file(kept, to / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack bert.encoder.layer.0.output.dense.weight"):
        probabilities(to)


OWN = ("load.py", "marked.py", "generate.py")
ATTACHED = [p for p in Path(exported_code.__file__).parent.glob("*.py") if p.name != "__init__.py"]
CODE = [
    *(Path(export.__file__).with_name(name) for name in OWN),
    *ATTACHED,
    Path(special_token_text.__file__),
]


@pytest.mark.parametrize("file", CODE, ids=lambda path: path.name)
def test_the_loader_imports_neither_peftkit_nor_peft(file: Path) -> None:
    source = file.read_text()
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    others = names - set(sys.stdlib_module_names)
    assert others & {"torch", "transformers", "tokenizers"}
    assert others <= {"torch", "transformers", "safetensors", "huggingface_hub", "tokenizers"}


def refused(run: Path, to: Path, message: str, **given: Any) -> None:
    """Exporting is refused with the message, and leaves nothing beside what is there."""
    before = sorted(to.parent.rglob("*"))
    with pytest.raises(RunError, match=message):
        peftkit.export(run, to, **{"verify": "off", **given})
    assert sorted(to.parent.rglob("*")) == before


def test_bad_input_is_refused_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    refused(run, tmp_path / "there", "exists - name a new folder with --to")
    refused(tmp_path, tmp_path / "to", "is not a finished run")
    refused(run, tmp_path / "to", "--verify: no file", verify=tmp_path / "none.txt")
    (tmp_path / "file").touch()
    refused(run, tmp_path / "file" / "to", "cannot be written .*--to")
    shutil.copytree(run, tmp_path / "run")
    trained_file = tmp_path / "run" / "artifact" / "trained.safetensors"
    content = trained_file.read_bytes()
    trained_file.write_bytes(content[:-1] + b"x")
    refused(tmp_path / "run", tmp_path / "to", "is not what was saved: trained.safetensors was ch")
    (tmp_path / "run" / "record.json").unlink()
    refused(tmp_path / "run", tmp_path / "to", "is not a finished run .it has not finished")


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        refused(run, tmp_path / "to", r"cannot be written \(File too large\).*--to")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seen", ["to.partial", "to.partial/base/model.safetensors"])
def test_killed_at_any_moment_it_leaves_no_result_and_starts_clean(
    seen: str, run: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    code = f"import peftkit; peftkit.export({str(run)!r}, {str(to)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    while process.poll() is None:
        if (tmp_path / seen).exists():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    assert process.wait() == -signal.SIGKILL
    assert not to.exists() and (tmp_path / "to.partial").is_dir()
    peftkit.export(run, to, verify="off")
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
    assert torch.allclose(probabilities(to), predicted(run), atol=1e-5)
