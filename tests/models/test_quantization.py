"""Quantization: which layers are quantized, and that each workaround is needed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import has_avx512bf16
from torch import nn

from peftkit.loading import model as model_module
from peftkit.models import quantization
from peftkit.models.quantization import dequantized
from support.toy_models import call, load_toy, rows, toy
from support.unquantized import unquantize

needs_avx512_bf16 = pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU lacks AVX512-BF16: bitsandbytes re-packs nothing here"
)
HELD = ("Linear4bit", "Linear8bitLt")
QUANTIZE = ["8bit", "4bit"]
PROBE = "strategy={kind: frozen, last: 0}"


def quantized_layers(module: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in module.named_modules() if type(m).__name__ in HELD}


def lora_weights_without_gradient(*overrides: str) -> list[str]:
    """Train one step after an evaluation: the adapters that get no gradient."""
    made = load_toy(toy("tiny-bert", *overrides), "bf16")
    examples = [rows("tiny-bert")["train"][index] for index in range(4)]
    call_without_gradient(made)
    made.module.train()
    try:
        call(made, examples).sum().backward()
    except RuntimeError as error:  # where nothing else needs a gradient, there is no graph at all
        return [str(error)]
    named = made.module.named_parameters()
    return [n for n, p in named if "lora_B" in n and (p.grad is None or not p.grad.any())]


@needs_avx512_bf16
def test_training_goes_on_after_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lora_weights_without_gradient("quantize=4bit") == []
    monkeypatch.setattr(model_module, "guard", lambda _: None)
    lost = lora_weights_without_gradient("quantize=4bit")
    assert lost, "bitsandbytes keeps gradients by itself: the guard can go"


@needs_avx512_bf16
def test_weights_can_be_read_after_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def error_after_evaluation() -> float:
        made = load_toy(toy("tiny-bert", "quantize=4bit"))
        layer = next(iter(quantized_layers(made.module).values()))
        before = dequantized(layer).clone()
        call_without_gradient(made)
        return float((dequantized(layer) - before).abs().max() / before.abs().max())

    assert error_after_evaluation() == 0.0
    monkeypatch.setattr(model_module, "guard", lambda _: None)
    assert error_after_evaluation() > 0.1, "bitsandbytes no longer re-packs: the guard can go"


@torch.no_grad()
def call_without_gradient(made: Any) -> torch.Tensor:
    return call(made, [rows("tiny-bert")["train"][index] for index in range(4)])


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_the_flag_that_stops_re_packing_is_set(quantize: str) -> None:
    """On any CPU: the layers have the flag that protects one with AVX512-BF16."""
    layers = quantized_layers(load_toy(toy("tiny-bert", f"quantize={quantize}", PROBE)).module)
    flags = [getattr(layer, "support_avx512bf16_for_cpu", None) for layer in layers.values()]
    assert set(flags) == ({False} if quantize == "4bit" else {None})


def test_dora_on_8_bits_keeps_its_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("quantize=8bit", "strategy={kind: lora, variant: dora}")
    made = load_toy(toy("tiny-bert", *settings))
    assert torch.equal(call_without_gradient(made), call_without_gradient(made))
    monkeypatch.setattr(model_module, "guard", lambda _: None)
    unguarded = load_toy(toy("tiny-bert", *settings))
    if torch.cuda.is_available():
        return  # peft moves weights to the CPU only where they are there already
    with pytest.raises(AttributeError):  # peft and bitsandbytes agree: the guard can go
        call_without_gradient(unguarded)
        call_without_gradient(unguarded)


FAKE_KERNELS = """
import os
def get_kernel(*what, **how):
    open(os.environ["MARK"], "a").write(f"{what} {how}\\n")
    raise RuntimeError("no kernel here")
"""
WITHOUT_PEFTKIT = "import bitsandbytes"
WITH_PEFTKIT = {
    "import peftkit.training.trainer": "the trainer, whose import brings peft",
    "import peftkit, kernels, bitsandbytes; assert kernels.get_kernel": "kernels first",
}


@pytest.fixture
def fake_kernels(tmp_path: Path) -> Iterator[Any]:
    """Run code with a `kernels` package that logs each download; returns the log."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(FAKE_KERNELS)
    mark = tmp_path / "fetched"
    path = [str(tmp_path), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "MARK": str(mark)}

    def run(code: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return (mark.read_text() if mark.exists() else ""), done.stderr

    yield run


@needs_avx512_bf16
def test_without_the_guard_bitsandbytes_would_fetch_code(fake_kernels: Any) -> None:
    assert "kernels-community/quantization-bitsandbytes" in fake_kernels(WITHOUT_PEFTKIT)[0]


@pytest.mark.parametrize("code", WITH_PEFTKIT, ids=list(WITH_PEFTKIT.values()))
def test_no_code_is_fetched_from_the_hub_whatever_is_imported_first(
    fake_kernels: Any, code: str
) -> None:
    fetched, output = fake_kernels(f"{code}; import sys; assert 'bitsandbytes' in sys.modules")
    assert fetched == ""
    assert "kernels-community" not in output


@pytest.mark.parametrize("quantize", QUANTIZE)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-distilbert", "tiny-roberta", "tiny-llama"])
def test_norms_embeddings_poolers_and_heads_stay_whole(model: str, quantize: str) -> None:
    module = load_toy(toy(model, f"quantize={quantize}", PROBE), "bf16").module
    quantized = quantized_layers(module)
    assert len(quantized) == {"tiny-llama": 14}.get(model, 12)  # the linear layers of two blocks
    assert all(".0." in name or ".1." in name for name in quantized)
    others = [m for n, m in module.named_modules() if n not in quantized and hasattr(m, "weight")]
    assert len(others) > 4
    assert all(other.weight.is_floating_point() for other in others)
    heads = [p for n, p in module.named_parameters() if p.requires_grad]
    assert heads and all(p.dtype == torch.float32 for p in heads)


@pytest.mark.parametrize(
    "quantize", [*QUANTIZE, "{kind: 4bit, quant_type: fp4, double_quant: false}"]
)
@pytest.mark.parametrize("after_a_pass", [False, True])
def test_dequantized_weights_are_what_the_layer_computes_with(
    quantize: str, after_a_pass: bool
) -> None:
    original = load_toy(toy("tiny-bert", "strategy=full")).module
    made = load_toy(toy("tiny-bert", f"quantize={quantize}", PROBE))
    if after_a_pass:
        call_without_gradient(made)
    for name, layer in quantized_layers(made.module).items():
        weight = dequantized(layer)
        whole = original.get_submodule(name).weight
        assert weight.shape == whole.shape and weight.dtype == torch.float32
        error = (weight - whole).norm() / whole.norm()
        assert error < (0.01 if quantize == "8bit" else 0.15)
        # rows of the identity are the same in 8 bits
        with torch.no_grad():
            columns = layer(torch.eye(whole.shape[1])) - layer.bias
        close = {"atol": 2e-3, "rtol": 2e-3} if quantize == "8bit" else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(columns, weight.T, **close)


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_an_unquantized_model_has_the_layers_it_once_had(model: str, quantize: str) -> None:
    whole = load_toy(toy(model, PROBE)).module
    module = load_toy(toy(model, PROBE, f"quantize={quantize}")).module
    unquantize(module)
    assert not quantized_layers(module)
    kinds = {n: type(m).__name__ for n, m in module.named_modules()}
    assert kinds == {n: type(m).__name__ for n, m in whole.named_modules()}
    shapes = {n: p.shape for n, p in module.named_parameters()}
    assert shapes == {n: p.shape for n, p in whole.named_parameters()}
    assert not hasattr(module.config, "quantization_config")
    examples = rows(model)["test"]
    found = call(load_toy(toy(model, PROBE)), examples)
    assert found.shape == (len(examples), 2)


def test_8_bits_say_once_that_they_compute_in_float16(caplog: pytest.LogCaptureFixture) -> None:
    made = load_toy(toy("tiny-bert", "quantize=8bit"), "bf16")
    call_without_gradient(made)
    assert made.notes == ("inputs of 8-bit layers are cast to float16 (bitsandbytes)",)
    assert not [each for each in caplog.messages if "MatMul8bitLt" in each]


def test_fewer_bits_take_less_memory() -> None:
    def storage_bytes(quantize: str) -> int:
        made = load_toy(toy("tiny-bert", f"quantize={quantize}"), "bf16").module
        blocks = [p for n, p in made.named_parameters() if "base_layer.weight" in n]
        return sum(p.numel() * p.element_size() for p in blocks)

    whole, eight, four = (storage_bytes(kind) for kind in ("none", "8bit", "4bit"))
    assert (eight, four) == (whole // 2, whole // 4)


def test_storage_in_the_computing_type_is_as_small_and_says_the_same() -> None:
    settings = "quantize={kind: 4bit, quant_storage: compute}"
    made = load_toy(toy("tiny-bert", settings), "bf16")
    assert {m.weight.dtype for m in quantized_layers(made.module).values()} == {torch.bfloat16}
    usual = load_toy(toy("tiny-bert", "quantize=4bit"), "bf16")
    assert torch.equal(call_without_gradient(made), call_without_gradient(usual))
    assert made.parameters == usual.parameters


def test_quantization_is_declared_without_torch() -> None:
    assert set(quantization.Quantization.kinds()) == {"none", "8bit", "4bit"}
    assert [k.bits for k in quantization.Quantization.kinds().values()] == [4, 8, None]
