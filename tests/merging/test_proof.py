"""The proof of a merge: what rounding does passes, and little more than that does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import peftkit
from peftkit.deltas.base import RowUpdate
from peftkit.deltas.low_rank import LowRankDelta
from peftkit.errors import RunError
from peftkit.merging.verification import proof
from peftkit.merging.verification.rounding import moved_by_rounding
from support.peft_adapters import CLASSIFIER, LANGUAGE, adapter, base, plain

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = peft.LoraConfig(r=4, target_modules=ALL, task_type=LANGUAGE)
TYPES = ("bfloat16", "float16", "float32")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in each type, and an adapter of it."""
    folder = tmp_path_factory.mktemp("llamas")
    for dtype in TYPES:
        whole = base(folder / dtype, "tiny-llama", dtype=dtype)
        adapter(folder / f"{dtype}-adapter", whole, LORA)
    return folder


@pytest.mark.parametrize("dtype", TYPES)
def test_a_logit_moves_as_far_as_another_rounding_moves_it(
    dtype: str, llamas: Path, tmp_path: Path
) -> None:
    said = peftkit.merge(llamas / f"{dtype}-adapter", tmp_path / "merged").proof
    assert said is not None
    if dtype == "float32":
        assert said.rounding is None and said.largest < 1e-5 * said.largest_logit
        return
    assert said.rounding is not None
    assert 0.4 < said.largest / said.rounding.largest < 2
    assert 0.8 < said.mean / said.rounding.mean < 1.2
    assert said.tolerance < {"bfloat16": 0.05, "float16": 0.01}[dtype] * said.largest_logit


def one_layer_all_but_left_out(
    delta: LowRankDelta, make: Callable[[LowRankDelta], RowUpdate]
) -> RowUpdate:
    missed = "layers.1.self_attn.v_proj" in delta.tensors[0].name
    return make(replace(delta, scale=delta.scale * 0.05) if missed else delta)


def scaled_wrongly(delta: LowRankDelta, make: Callable[[LowRankDelta], RowUpdate]) -> RowUpdate:
    return make(replace(delta, scale=delta.scale * 1.05))


@pytest.mark.parametrize("fault", [one_layer_all_but_left_out, scaled_wrongly])
def test_a_small_fault_is_more_than_rounding_explains(
    fault: Any, llamas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = LowRankDelta.prepare
    monkeypatch.setattr(
        LowRankDelta,
        "prepare",
        lambda delta, shape, sign=1.0: fault(delta, lambda changed: prepare(changed, shape, sign)),
    )
    with pytest.raises(RunError, match=r"more than rounding explains \(\S+, mean \S+\); it was"):
        peftkit.merge(llamas / "bfloat16-adapter", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_few_logits_pass_as_well(tmp_path: Path) -> None:
    whole = base(tmp_path / "base", "tiny-bert", task=CLASSIFIER, dtype="bfloat16")
    config = peft.LoraConfig(r=4, target_modules=["query", "dense"], task_type=CLASSIFIER)
    for seed in range(2):
        held = adapter(tmp_path / f"adapter{seed}", whole, config, seed=seed)
        said = peftkit.merge(held, tmp_path / f"merged{seed}").proof
        assert said is not None and 0 < said.largest < said.tolerance < 0.05


def test_rounding_is_undone_and_stays_within_half_a_step(llamas: Path) -> None:
    model = plain(llamas / "bfloat16", dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    types = {name: "BF16" for name in before if "q_proj" in name}
    with torch.no_grad():
        for _ in moved_by_rounding(model, types, lambda _: torch.zeros(1)):
            for name, parameter in model.named_parameters():
                apart = (parameter - before[name]).abs()
                assert bool((apart <= 2**-8 * before[name].abs()).all())
                assert (name in types) == bool(apart.any())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_cannot_be_found_by_name_is_all_rounded(llamas: Path) -> None:
    model = plain(llamas / "float32")
    with torch.no_grad():
        draws = moved_by_rounding(model, {"put.together": "F16"}, lambda _: torch.zeros(1))
        before = model.lm_head.weight.clone()
        next(draws)
    assert not torch.equal(model.lm_head.weight, before)


def test_nothing_that_is_no_number_passes() -> None:
    nan = float("nan")
    found = {"largest": nan, "mean": nan, "largest_logit": nan, "computed_in": "float32"}
    others = {"rows": 1, "texts": "", "metric": None, "before": None, "after": None}
    said = proof.check_tolerances({**found, **others, "scored_rows": 0, "rounding": None})
    assert not said.largest <= said.tolerance
