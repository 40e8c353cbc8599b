"""Merging runs: proven on their rows, whole after a kill, light, and undone again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

import peftkit
from peftkit.cli.main import main
from peftkit.errors import RunError
from peftkit.hub.resolve import find_model
from support.peft_adapters import LANGUAGE, adapter, base, on_base, plain
from support.run_processes import ENVIRONMENT, tensors
from support.toy_models import toy

SETTINGS = (
    "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.01}",
)


def trained(folder: Path, *settings: str) -> Path:
    """A finished run."""
    peftkit.train(toy("tiny-bert", *SETTINGS, *settings), folder)
    return next(path.parent for path in folder.glob("*/record.json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run."""
    return trained(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base in bf16 and shards, and PEFT's adapter of it."""
    folder = tmp_path_factory.mktemp("sharded")
    whole = base(folder / "base", "tiny-llama", dtype="bfloat16", max_shard_size="60KB")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=LANGUAGE)
    return whole, adapter(folder / "adapter", whole, config)


def test_a_run_is_merged_proven_on_its_rows_and_undone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "merged"
    assert main(["merge", str(run), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"logits differ\tlargest .* on 16 of the run's held-out rows", said)
    assert re.search(r"accuracy\t\S+ before, \S+ after \(n=16\)", said)
    made = json.loads((to / "merge.json").read_text())
    assert 0 < made["proof"]["largest"] < 1e-5
    assert made["proof"]["before"] == made["proof"]["after"]
    assert "AutoModelForSequenceClassification" in (to / "README.md").read_text()
    assert {"config.json", "tokenizer.json"} <= {path.name for path in to.iterdir()}
    assert (
        main(["merge", str(run), "--to", str(tmp_path / "back"), "--base", str(to), "--subtract"])
        == 0
    )
    assert "restored\tto within " in capsys.readouterr().out
    back = json.loads((tmp_path / "back" / "merge.json").read_text())
    assert 0 < back["restored_difference"] < 1e-6
    assert set(back["dropped"]) == {"classifier.weight", "classifier.bias"}


def test_a_quantized_run_is_merged_onto_the_base_it_was_trained_against(tmp_path: Path) -> None:
    run = trained(tmp_path / "runs", "quantize=4bit")
    made = peftkit.merge(run, tmp_path / "trained", compare_bases=True)
    assert made.onto == "trained" and made.proof is not None
    assert made.proof.onto_trained is not None and made.proof.onto_original is not None
    assert made.proof.onto_trained.largest < 1e-5 < 1e-3 < made.proof.onto_original.largest
    other = peftkit.merge(run, tmp_path / "original", onto="original", verify="off")
    assert other.proof is None and other.copied == made.copied
    with pytest.raises(RunError, match=r"only its run records what that was quantized from"):
        shutil.copytree(run / "artifact", tmp_path / "artifact")
        peftkit.merge(tmp_path / "artifact", tmp_path / "alone", verify="off")


def test_a_merge_that_says_something_else_is_removed(
    sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(sharded[1], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(path.read_text())
    # PEFT then leaves out what the folder holds for the others
    path.write_text(json.dumps({**said, "target_modules": ["q_proj"]}))
    with pytest.raises(
        RunError, match=r"predictions differ from those of base and adapter: in 8 texts a logit"
    ):
        peftkit.merge(tmp_path / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_merge_that_lacks_tensors_of_its_class_is_removed(
    sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = tmp_path / "base"
    shutil.copytree(sharded[0], whole, ignore=shutil.ignore_patterns("model*"))
    kept = {n: t for n, t in plain(sharded[0], dtype="auto").state_dict().items()}
    del kept["model.layers.1.mlp.gate_proj.weight"]
    save_file(kept, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"lacks model.layers.1.mlp.gate_proj.weight, which Llama"):
        peftkit.merge(sharded[1], tmp_path / "merged", base=whole, verify=["some text"])
    assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.partial").exists()


def test_a_plain_adapter_is_proven_on_given_texts(
    sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, held = sharded
    (tmp_path / "texts.txt").write_text("the coach was near the stadium\n\nsoup and bread\n")
    made = peftkit.merge(held, tmp_path / "merged", verify=tmp_path / "texts.txt")
    assert made.proof is not None
    assert (made.proof.rows, made.proof.texts) == (2, "the given texts")
    assert 0 < made.proof.largest < made.proof.tolerance
    ids = torch.arange(5, 25)[None]
    ours, theirs = plain(tmp_path / "merged", dtype=torch.float32), on_base(whole, held)
    said = [
        m.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0) for m in (ours, theirs)
    ]
    assert said[0].shape == (1, 40) and torch.equal(said[0], said[1])


def test_subtracting_restores_the_base_to_within_rounding(
    sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    _, held = sharded
    peftkit.merge(held, tmp_path / "merged", verify="off")
    back = peftkit.merge(held, tmp_path / "back", base=tmp_path / "merged", subtract=True)
    assert back.restored_difference is not None and 0 < back.restored_difference < 2**-7
    with pytest.raises(RunError, match="more than rounding explains"):
        peftkit.merge(held, tmp_path / "twice", base=tmp_path / "back", subtract=True)


@pytest.mark.slow
@pytest.mark.network
def test_a_real_model_writes_the_same_after_merging(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    whole = Path(find_model("HuggingFaceTB/SmolLM2-135M-Instruct").location)
    config = peft.LoraConfig(r=8, target_modules="all-linear", task_type=LANGUAGE)
    held = adapter(tmp_path / "adapter", whole, config, size=0.005)
    peftkit.merge(held, tmp_path / "merged")
    ours, theirs = plain(tmp_path / "merged", dtype=torch.float32), on_base(whole, held)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for number in range(50):
        ids = tokenizer(f"Question {number}: what is {number} times 7?", return_tensors="pt")
        said = [m.generate(**ids, max_new_tokens=16, do_sample=False) for m in (ours, theirs)]
        assert torch.equal(said[0], said[1]), number


IMPORTED = """
import sys
import peftkit
peftkit.merge(sys.argv[1], sys.argv[2], verify="off")
print(sorted({"peft", "transformers", "accelerate", "datasets"} & set(sys.modules)))
"""


def test_merging_a_lora_imports_neither_peft_nor_transformers(
    sharded: tuple[Path, Path], run: Path, tmp_path: Path
) -> None:
    for number, held in enumerate((sharded[1], run)):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED, str(held), str(tmp_path / str(number))],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=True,
        )
        assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that takes a while to merge, and an adapter of it."""
    folder = tmp_path_factory.mktemp("large")
    whole, held, size = folder / "base", folder / "adapter", 1024
    whole.mkdir()
    held.mkdir()
    names = [f"model.layers.{n}.proj" for n in range(40)]
    weight = torch.randn(size, size)
    save_file({f"{n}.weight": weight + i for i, n in enumerate(names)}, whole / "model.safetensors")
    (whole / "config.json").write_text(json.dumps({"model_type": "none"}))
    parts = {
        f"base_model.model.{n}.lora_{h}.weight": torch.randn(
            *((4, size) if h == "A" else (size, 4))
        )
        for n in names
        for h in "AB"
    }
    save_file(parts, held / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(whole)}
    (held / "adapter_config.json").write_text(json.dumps(config))
    return whole, held


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_killed_at_any_moment_it_leaves_no_result_and_starts_clean(
    share: float, large: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, held = large
    to = tmp_path / "merged"
    code = f"import peftkit; peftkit.merge({str(held)!r}, {str(to)!r}, verify='off')"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    weights = tmp_path / "merged.partial" / "model.safetensors"
    wanted = share * (whole / "model.safetensors").stat().st_size
    while process.poll() is None:
        if weights.exists() and weights.stat().st_size >= wanted:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    assert process.wait() == -signal.SIGKILL
    assert not to.exists() and weights.exists()
    again = peftkit.merge(held, to, verify="off")
    assert again.changed == 40 and not weights.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    found, before = tensors(to), tensors(whole)
    assert found.keys() == before.keys()
    assert all(found[name] != before[name] for name in before)


def test_all_of_it_is_on_the_disk_before_it_looks_finished(
    sharded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted(handle: int) -> None:
        seen.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def renamed(source: Path, to: Path) -> None:
        seen.append("renamed")
        rename(source, to)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", renamed)
    peftkit.merge(sharded[1], tmp_path / "merged", verify="off")
    before, after = seen[: seen.index("renamed")], seen[seen.index("renamed") + 1 :]
    partial = tmp_path / "merged.partial"
    assert {str(partial / path.name) for path in (tmp_path / "merged").iterdir()} < {*before}
    assert before[-1] == str(partial) and after == [str(tmp_path)]


def test_two_at_once_do_not_meet(large: tuple[Path, Path], tmp_path: Path) -> None:
    to = tmp_path / "merged"
    code = f"import peftkit; peftkit.merge({str(large[1])!r}, {str(to)!r}, verify='off')"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    while not (tmp_path / "merged.partial").exists():
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(RunError, match="another process is writing it - wait for it"):
        peftkit.merge(large[1], to, verify="off")
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait() == 0 and to.is_dir()
