"""Precision is chosen by measured matrix products, once per machine; measurements are cached."""

import platform
from pathlib import Path

import pytest
import torch

from peftkit.runtime import distributed, measurements
from peftkit.runtime.distributed import resolve_precision, slow_precision_warning
from peftkit.runtime.matmul_speed import matmul_speeds, measure_matmul_speed
from support.commands import python

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU says what it has")
EMULATED = """
from peftkit.config.recipe import Recipe
from peftkit.runtime.distributed import World
print(World.enter(Recipe.load("lora_tiny").training).precision)
print(World.enter(Recipe.load("lora_tiny", "training.precision=bf16").training).precision)
"""


@on_cpu
@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen"), [(7e11, 2e11, "bf16"), (9e8, 1.2e11, "fp32"), (5e9, 4e9, "bf16")]
)
def test_auto_is_the_precision_whose_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float, chosen: str
) -> None:
    monkeypatch.setattr(distributed, "matmul_speeds", lambda: {"bf16": bf16, "fp32": fp32})
    assert resolve_precision("auto") == chosen
    assert resolve_precision("bf16") == "bf16" and resolve_precision("fp32") == "fp32"


@on_cpu
def test_bf16_that_is_slower_is_warned_of_with_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "matmul_speeds", lambda: {"bf16": 8e8, "fp32": 1.2e11})
    warning = slow_precision_warning("bf16")
    assert (
        warning is not None
        and "0.8 GFLOP/s in bf16, 120.0 in fp32 (150.0 times as many)" in warning
    )
    assert slow_precision_warning("auto") is None and slow_precision_warning("fp32") is None
    monkeypatch.setattr(distributed, "matmul_speeds", lambda: {"bf16": 2e11, "fp32": 1.2e11})
    assert slow_precision_warning("bf16") is None


@on_cpu
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variable is for x86")
def test_a_processor_that_emulates_bf16_computes_in_fp32(tmp_path: Path) -> None:
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "PEFTKIT_CACHE": str(tmp_path)}
    done = python("-c", EMULATED, cwd=tmp_path, **limits)
    assert done.stdout.split() == ["fp32", "bf16"], done.stderr
    assert done.stderr.count("use training.precision=fp32") == 1
    assert len(list((tmp_path / "measured").glob("products-*.json"))) == 1


def test_products_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    first = matmul_speeds()
    assert set(first) == {"bf16", "fp32"} and min(first.values()) > 0
    assert matmul_speeds() == first
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # fewer instructions: another machine
    assert measurements.find("products") is None
    assert measure_matmul_speed("fp32", side=16, seconds=0.0) > 0


def test_the_first_measurement_holds_and_a_damaged_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    assert measurements.find("speed", model="a") is None
    assert measurements.keep("speed", {"x": 1}, model="a") == {"x": 1}
    assert measurements.keep("speed", {"x": 2}, model="a") == {"x": 1}
    assert measurements.keep("speed", {"x": 3}, model="b") == {"x": 3}
    for path in tmp_path.rglob("speed-*.json"):
        path.write_text("{")
    assert measurements.find("speed", model="a") is None
    assert measurements.keep("speed", {"x": 4}, model="a") == {"x": 4}
