"""Merging adapters that PEFT made: the same weights as PEFT's own merge, to one rounding step."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import peftkit
from peftkit.hub.resolve import find_model
from support.peft_adapters import (
    CLASSIFIER,
    LANGUAGE,
    adapter,
    base,
    merged_by_peft,
    on_base,
    plain,
)
from support.run_processes import tensors

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=ALL, task_type=LANGUAGE),
    "rslora": peft.LoraConfig(r=4, use_rslora=True, target_modules=ALL, task_type=LANGUAGE),
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=ALL, task_type=LANGUAGE),
    "patterns": peft.LoraConfig(
        r=4,
        target_modules=ALL,
        rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 3},
        alpha_pattern={r".*\.1\..*": 5, "o_proj": 32},
        task_type=LANGUAGE,
    ),
    "bias": peft.LoraConfig(r=4, bias="lora_only", target_modules=ALL, task_type=LANGUAGE),
    "loha": peft.LoHaConfig(r=4, target_modules=ALL, task_type=LANGUAGE),
    "lokr": peft.LoKrConfig(r=4, target_modules=ALL, task_type=LANGUAGE),
    "lokr-both": peft.LoKrConfig(r=2, decompose_both=True, target_modules=ALL, task_type=LANGUAGE),
    "oft": peft.OFTConfig(oft_block_size=16, target_modules=ALL, task_type=LANGUAGE),
    "oft-solved": peft.OFTConfig(
        oft_block_size=16, use_cayley_neumann=False, target_modules=ALL, task_type=LANGUAGE
    ),
    "oft-shared": peft.OFTConfig(
        oft_block_size=8,
        block_share=True,
        coft=True,
        eps=0.1,
        target_modules=ALL,
        task_type=LANGUAGE,
    ),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=ALL, task_type=LANGUAGE),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type=LANGUAGE,
    ),
    "vera": peft.VeraConfig(r=8, target_modules=ALL, task_type=LANGUAGE),
    "vera-drawn": peft.VeraConfig(
        r=8, target_modules=ALL, save_projection=False, task_type=LANGUAGE
    ),
    "adalora": peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=ALL, task_type=LANGUAGE
    ),
    "ln_tuning": peft.LNTuningConfig(target_modules=["input_layernorm"], task_type=LANGUAGE),
    "pissa": peft.LoraConfig(
        r=4, init_lora_weights="pissa", target_modules=ALL, task_type=LANGUAGE
    ),
    "olora": peft.LoraConfig(
        r=4, init_lora_weights="olora", target_modules=ALL, task_type=LANGUAGE
    ),
    "embeddings": peft.LoraConfig(
        r=4, target_modules=["embed_tokens", "q_proj"], task_type=LANGUAGE
    ),
    "dora-embeddings": peft.LoraConfig(
        r=4, use_dora=True, target_modules=["embed_tokens", "q_proj"], task_type=LANGUAGE
    ),
    "tokens": peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[1, 5, 200], task_type=LANGUAGE
    ),
    "saved": peft.LoraConfig(
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type=LANGUAGE,
    ),
}


def step(tensor: torch.Tensor) -> torch.Tensor:
    """The distance to the next number that the type holds, at each of the tensor's."""
    at = tensor.abs().clamp(min=torch.finfo(tensor.dtype).tiny)
    return torch.nextafter(at, torch.full_like(at, torch.inf)) - at


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module, steps: float, slack: float) -> None:
    """Whether all weights are the same but for so many rounding steps, and so much."""
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, mine in ours.state_dict().items():
        other = expected[name]
        assert mine.dtype == other.dtype
        apart = (mine.double() - other.double()).abs()
        allowed = steps * torch.maximum(step(mine), step(other)).double() + slack
        assert bool((apart <= allowed).all()), (name, float((apart - allowed).max()))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Llama in fp32, and one in bf16 and shards."""
    folder = tmp_path_factory.mktemp("llamas")
    return {
        "float32": base(folder / "fp32", "tiny-llama"),
        "bfloat16": base(folder / "bf16", "tiny-llama", dtype="bfloat16", max_shard_size="60KB"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_and_shards_the_weights_are_pefts_rounded_once(
    kind: str, llamas: dict[str, Path], tmp_path: Path
) -> None:
    base = llamas["bfloat16"]
    held = adapter(tmp_path / "adapter", base, KINDS[kind])
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    theirs = merged_by_peft(base, held, dtype=torch.float32).to(torch.bfloat16)
    assert_same(plain(tmp_path / "merged", dtype="auto"), theirs, steps=1, slack=0)
    files = {path.name for path in base.glob("model*")}
    assert len(files) > 3 and {path.name for path in (tmp_path / "merged").glob("model*")} == files
    before, after = tensors(base), tensors(tmp_path / "merged")
    same = [name for name in before if before[name] == after[name]]
    assert len(same) == made.copied and made.changed == len(after) - len(same)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(content) for _, content in after.values())


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp32_the_weights_are_those_of_pefts_own_merge(
    kind: str, llamas: dict[str, Path], tmp_path: Path
) -> None:
    held = adapter(tmp_path / "adapter", llamas["float32"], KINDS[kind])
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    assert made.changed > 0 and made.proof is None
    theirs = merged_by_peft(llamas["float32"], held)
    # sums of other orders differ by some last places of what was added
    assert_same(plain(tmp_path / "merged"), theirs, steps=1, slack=2e-6)


CONV1D = ["c_attn", "c_proj", "c_fc"]
TRANSPOSED: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=CONV1D, fan_in_fan_out=True, task_type=LANGUAGE),
    "dora": peft.LoraConfig(
        r=4, use_dora=True, target_modules=CONV1D, fan_in_fan_out=True, task_type=LANGUAGE
    ),
    "with-head": peft.LoraConfig(
        r=4, target_modules=[*CONV1D, "lm_head"], fan_in_fan_out=True, task_type=LANGUAGE
    ),
    "ia3": peft.IA3Config(
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
        task_type=LANGUAGE,
    ),
    "adalora": peft.AdaLoraConfig(
        init_r=4, total_step=10, target_modules=CONV1D, fan_in_fan_out=True, task_type=LANGUAGE
    ),
    "vera": peft.VeraConfig(
        r=8, save_projection=False, target_modules=CONV1D, fan_in_fan_out=True, task_type=LANGUAGE
    ),
}


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_weights_that_lie_transposed_are_told_from_others(kind: str, tmp_path: Path) -> None:
    whole = base(tmp_path / "base", "tiny-gpt2", tie_word_embeddings=False)
    held = adapter(tmp_path / "adapter", whole, TRANSPOSED[kind])
    peftkit.merge(held, tmp_path / "merged", verify="off")
    assert_says_the_same(tmp_path / "merged", on_base(whole, held))


def assert_says_the_same(merged: Path, expected: Any, task: str = LANGUAGE) -> Any:
    """Whether the merged checkpoint, opened as it is, gives the logits of base + adapter."""
    ours = plain(merged, task)
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(input_ids=ids).logits, expected(input_ids=ids).logits, atol=2e-4, rtol=1e-4
        )
    return ours


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_a_trained_head_comes_along_with_its_labels_and_class(model: str, tmp_path: Path) -> None:
    headless = Path(find_model(model).location)
    whole = headless if model == "tiny-bert" else base(tmp_path / "base", model)
    targets = ["query", "dense", "q_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, task_type=CLASSIFIER)
    held = adapter(tmp_path / "adapter", whole, config, num_labels=3)
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    expected = on_base(whole, held, CLASSIFIER, num_labels=3)
    ours = assert_says_the_same(tmp_path / "merged", expected, CLASSIFIER)
    assert ours.config.num_labels == 3
    assert ours.config.architectures == [type(ours).__name__]
    assert made.dropped == ([] if model == "tiny-bert" else ["lm_head.weight"])
    names = set(ours.state_dict())
    assert set(tensors(tmp_path / "merged")) == names


@pytest.mark.parametrize(
    ("config", "untied"),
    [
        (peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=LANGUAGE), False),
        (peft.LoraConfig(r=4, target_modules=["embed_tokens"], task_type=LANGUAGE), True),
        (peft.LoraConfig(r=4, target_modules=["lm_head"], task_type=LANGUAGE), True),
        (
            peft.LoraConfig(
                r=4,
                target_modules=["q_proj"],
                modules_to_save=["embed_tokens"],
                task_type=LANGUAGE,
            ),
            True,
        ),
        (
            peft.LoraConfig(
                r=4,
                target_modules=["q_proj"],
                modules_to_save=["embed_tokens"],
                ensure_weight_tying=True,
                task_type=LANGUAGE,
            ),
            False,
        ),
        (
            peft.LoraConfig(
                r=4, target_modules=["q_proj"], trainable_token_indices=[3, 7], task_type=LANGUAGE
            ),
            False,
        ),
    ],
    ids=["layer", "embeddings", "head", "saved", "saved-tied", "tokens"],
)
def test_tied_weights_stay_tied_or_the_configuration_says_that_they_do_not(
    config: Any, untied: bool, tmp_path: Path
) -> None:
    whole = base(tmp_path / "base", "tiny-llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors(whole)
    held = adapter(tmp_path / "adapter", whole, config)
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    assert made.untied == untied
    ours = assert_says_the_same(tmp_path / "merged", on_base(whole, held))
    assert ours.config.tie_word_embeddings is not untied
    assert ("lm_head.weight" in tensors(tmp_path / "merged")) == untied


@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_vocabulary_comes_along(tied: bool, tmp_path: Path) -> None:
    whole = base(tmp_path / "base", "tiny-llama", tie_word_embeddings=tied)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=LANGUAGE)
    held = adapter(tmp_path / "adapter", whole, config, tokens=230)
    peftkit.merge(held, tmp_path / "merged", verify="off")
    ours = assert_says_the_same(tmp_path / "merged", on_base(whole, held, tokens=230))
    assert ours.config.vocab_size == 230
    assert ours.config.tie_word_embeddings == tied
