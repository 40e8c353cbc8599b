"""Merging several adapters at once: as PEFT's own functions do, proven, or refused with why."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

import peftkit
from peftkit.cli.main import main
from peftkit.errors import RunError
from peftkit.merging.mixing import METHODS, CombinedDelta
from support.peft_adapters import LANGUAGE, adapter, base, on_base, plain
from support.run_processes import ENVIRONMENT, tensors
from support.toy_models import toy

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=[*ATTENTION, *MLP], task_type=LANGUAGE),
    "rslora": peft.LoraConfig(
        r=2, use_rslora=True, target_modules=[*ATTENTION, "embed_tokens"], task_type=LANGUAGE
    ),
    "loha": peft.LoHaConfig(r=4, target_modules=MLP, task_type=LANGUAGE),
    "lokr": peft.LoKrConfig(r=4, target_modules=ATTENTION, task_type=LANGUAGE),
    "vera": peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"], task_type=LANGUAGE),
    "adalora": peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=ATTENTION, task_type=LANGUAGE
    ),
}


IMPORTED = """
import sys
import peftkit
peftkit.merge(sys.argv[1:3], sys.argv[3], verify="off")
print(sorted({"peft", "transformers", "accelerate", "datasets"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded base, and an adapter of it of each kind."""
    folder = tmp_path_factory.mktemp("several")
    whole = base(folder / "base", "tiny-llama", max_shard_size="60KB")
    for number, (kind, config) in enumerate(KINDS.items()):
        adapter(folder / kind, whole, config, seed=number)
    return folder


def differences(folder: Path, kind: str) -> dict[str, Tensor]:
    """What one adapter adds to which tensor, by PEFT's own merge."""
    before = plain(folder / "base", dtype=torch.float64).state_dict()
    model = on_base(folder / "base", folder / kind, dtype=torch.float64).double()
    after = model.merge_and_unload().state_dict()
    return {
        n: (after[n] - before[n]).float() for n in before if not torch.equal(after[n], before[n])
    }


def test_the_sum_of_every_kind_is_the_base_and_each_weighted_difference(
    made: Path, tmp_path: Path
) -> None:
    weights = dict(zip(KINDS, (0.5, -0.25, 2.0, 0.75, 1.5, 0.3), strict=True))
    held = [made / kind for kind in KINDS]
    done = peftkit.merge(held, tmp_path / "merged", weights=list(weights.values()))
    expected = plain(made / "base").state_dict()
    for kind, weight in weights.items():
        for name, difference in differences(made, kind).items():
            expected[name] = expected[name] + weight * difference
    found = plain(tmp_path / "merged").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=1e-6)
    assert done.proof is not None and 0 < done.proof.largest < done.proof.tolerance
    assert done.mix is not None and done.mix.weights == tuple(weights.values())


@pytest.mark.parametrize("method", METHODS[1:])
def test_pruning_methods_are_pefts_own_on_whole_differences(
    method: str, made: Path, tmp_path: Path
) -> None:
    kinds, weights, density = ("lora", "rslora", "lokr"), (0.5, 1.0, 2.0), 0.3
    seed = {"seed": 7} if method.startswith("dare") else {}
    done = peftkit.merge(
        [made / kind for kind in kinds],
        tmp_path / "merged",
        weights=weights,
        method=method,  # type: ignore[arg-type]
        density=density,
        verify=None if method.endswith("ties") else "off",
        **seed,
    )
    assert done.proof is None or 0 < done.proof.largest < done.proof.tolerance
    found, before = plain(tmp_path / "merged").state_dict(), plain(made / "base").state_dict()
    said = [differences(made, kind) for kind in kinds]
    for name, tensor in found.items():
        voting = [(d[name], w) for d, w in zip(said, weights, strict=True) if name in d]
        expected = before[name]
        if voting:
            drawn = sha256(f"{done.mix.seed if done.mix else 0}:{name}".encode()).digest()
            torch.manual_seed(int.from_bytes(drawn[:7], "big"))
            combine = getattr(merge_utils, method)
            votes = torch.tensor([weight for _, weight in voting])
            expected = expected + combine([delta for delta, _ in voting], votes, density)
        # an element at the threshold may fall on either side of it
        apart = (tensor - expected).abs() > 2e-6
        assert int(apart.sum()) <= 1 + tensor.numel() // 10_000, name


def test_the_seed_decides_what_is_dropped_and_nothing_else_does(made: Path, tmp_path: Path) -> None:
    held = [made / "lora", made / "loha"]
    for folder, seed in (("one", 1), ("again", 1), ("two", 2)):
        peftkit.merge(held, tmp_path / folder, method="dare_linear", seed=seed, verify="off")
    one, again, two = (tensors(tmp_path / folder) for folder in ("one", "again", "two"))
    assert one == again and one.keys() == two.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert one[name] != two[name]


def test_a_bias_and_weights_that_lie_transposed_add_up_too(tmp_path: Path) -> None:
    whole = base(tmp_path / "base", "tiny-gpt2", tie_word_embeddings=False)
    shared = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "task_type": LANGUAGE}
    one = peft.LoraConfig(r=4, lora_bias=True, **shared)
    two = peft.VeraConfig(r=8, save_projection=False, **shared)
    held = [adapter(tmp_path / n, whole, c) for n, c in (("one", one), ("two", two))]
    done = peftkit.merge(held, tmp_path / "merged", weights=[2, 0.5])
    assert done.proof is not None and 0 < done.proof.largest < 1e-4
    back = peftkit.merge(
        held, tmp_path / "back", base=tmp_path / "merged", weights=[2, 0.5], subtract=True
    )
    assert back.restored_difference is not None and 0 < back.restored_difference < 1e-5


def test_a_sum_imports_neither_peft_nor_transformers(made: Path, tmp_path: Path) -> None:
    held = [str(made / "lora"), str(made / "vera")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *held, str(tmp_path / "merged")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_proof_of_several_that_says_something_else_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = CombinedDelta.prepare

    def without_the_second(self: CombinedDelta, shape: tuple[int, ...], sign: float = 1.0) -> Any:
        first = tuple((n, delta) for n, delta in self.members if n == 0)
        return prepare(replace(self, members=first), shape, sign)

    monkeypatch.setattr(CombinedDelta, "prepare", without_the_second)
    with pytest.raises(RunError, match="predictions differ from those of base and adapter"):
        peftkit.merge([made / "lora", made / "loha"], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_are_merged_with_the_head_that_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32}"
    for seed in (1, 2):
        recipe = toy("tiny-bert", settings, f"training.seed={seed}", "training.lr=0.01")
        peftkit.train(recipe, tmp_path / str(seed))
    one, two = (next((tmp_path / n).glob("*/record.json")).parent for n in "12")
    with pytest.raises(RunError, match=r"another head than .* - name the one to keep"):
        peftkit.merge([one, two], tmp_path / "merged")
    with pytest.raises(RunError, match=r"is none of the adapters with a head - name one of"):
        peftkit.merge([one, two], tmp_path / "merged", head_from=tmp_path)
    said = ["--weights", "0.5,0.5", "--head-from", str(two), "--to", str(tmp_path / "merged")]
    assert main(["merge", str(one), str(two), *said]) == 0
    shown = capsys.readouterr().out
    assert f"combined\tsum of 0.5 x {one}, 0.5 x {two}\n" in shown
    assert f"heads dropped\tthose of {one}\n" in shown
    assert re.search(r"accuracy\t\S+ before, \S+ after \(n=16\)", shown)
    assert "2 adapters (LORA)" in (tmp_path / "merged" / "README.md").read_text()
    head = tensors(two / "artifact")["base_model.model.classifier.weight"]
    assert tensors(tmp_path / "merged")["classifier.weight"] == head


def unaddable(**settings: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=LANGUAGE, **settings)


WHOLE: dict[str, tuple[Any, str]] = {
    "dora": (unaddable(use_dora=True), "DoRA rescales the weights of each output"),
    "oft": (
        peft.OFTConfig(oft_block_size=16, target_modules=["q_proj"], task_type=LANGUAGE),
        "OFT rotates the weights, which cannot be added - merge it alone",
    ),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type=LANGUAGE),
        "IA3 multiplies the weights",
    ),
    "pissa": (unaddable(init_lora_weights="pissa"), "pissa moved a part of the base"),
    "tokens": (unaddable(trainable_token_indices=[1, 5]), "it replaces rows of the embeddings"),
    "saved": (
        unaddable(modules_to_save=["embed_tokens"]),
        r"model.embed_tokens.weight was trained itself, not a difference",
    ),
    "norms": (
        peft.LNTuningConfig(target_modules=["input_layernorm"], task_type=LANGUAGE),
        r".*input_layernorm.weight was trained itself",
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_does_not_add_up_is_refused_with_the_reason(
    kind: str, made: Path, tmp_path: Path
) -> None:
    config, message = WHOLE[kind]
    held = adapter(tmp_path / "adapter", made / "base", config)
    with pytest.raises(RunError, match=rf"adapter: cannot be added to other adapters: {message}"):
        peftkit.merge([made / "lora", held], tmp_path / "merged", verify="off")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [1.0]}, r"--weights: 1 for 2 adapters - give one for each"),
        ({"weights": [1.0, 0.0]}, r"--weights: 0.0 for .*loha - leave the adapter out"),
        ({"weights": [1.0, float("nan")]}, r"--weights: nan for .*loha"),
        ({"method": "tie"}, r"--method: no method 'tie' - did you mean 'ties'\?"),
        ({"density": 0.5}, r"--density: 0.5 - use a number .* with a --method that prunes"),
        ({"method": "ties", "density": 1.5}, r"--density: 1.5 - use a number above 0, up to 1"),
        ({"method": "ties", "seed": 1}, r"--seed: ties is not random"),
        ({"head_from": "lora"}, r"--head-from: lora is none .* those \(there are none\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    given: Mapping[str, Any], message: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        peftkit.merge([made / "lora", made / "loha"], tmp_path / "merged", **given)
    assert list(tmp_path.iterdir()) == []


def test_adapters_of_other_bases_and_those_that_say_nothing_are_refused(
    made: Path, tmp_path: Path
) -> None:
    other = base(tmp_path / "other", "tiny-llama")
    far = adapter(tmp_path / "far", other, KINDS["lora"])
    with pytest.raises(RunError, match=r"merge adapters of one base; .* name it with --base"):
        peftkit.merge([made / "lora", far], tmp_path / "merged")
    none = adapter(tmp_path / "none", made / "base", KINDS["lora"], size=0.0)
    with pytest.raises(
        RunError, match=r"none: this adapter changes nothing: its difference is zero"
    ):
        peftkit.merge([made / "lora", none], tmp_path / "merged")
    with pytest.raises(RunError, match="nothing to merge"):
        peftkit.merge([], tmp_path / "merged")
