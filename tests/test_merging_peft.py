"""Merging adapters that PEFT made: the same weights as PEFT's own merge, to one rounding step."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters import LANGUAGE, adapter, base, merged_by_peft, plain

import peftkit

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
def test_in_fp32_the_weights_are_those_of_pefts_own_merge(
    kind: str, llamas: dict[str, Path], tmp_path: Path
) -> None:
    held = adapter(tmp_path / "adapter", llamas["float32"], KINDS[kind])
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    assert made.changed > 0 and made.proof is None
    theirs = merged_by_peft(llamas["float32"], held)
    # sums of other orders differ by some last places of what was added
    assert_same(plain(tmp_path / "merged"), theirs, steps=1, slack=2e-6)
