"""Merging what PEFT makes of convolutions, and of starts that it took out of the base again."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit
from peftkit.errors import RunError
from peftkit.strategies.base import quiet_peft
from support.peft_adapters import LANGUAGE, base, plain

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Convolving(torch.nn.Module):
    """A model of convolutions, which PEFT adapts and transformers has no class for."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.line = torch.nn.Conv1d(8, 6, kernel_size=3, groups=groups)
        self.plane = torch.nn.Conv2d(6, 10, kernel_size=(3, 2), bias=False)
        self.point = torch.nn.Conv2d(10, 4, kernel_size=1)


def convolving(folder: Path, groups: int = 1, **settings: Any) -> Any:
    """Base and adapter in `folder`; the adapted model."""
    torch.manual_seed(0)
    model = Convolving(groups)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "none"}))
    save_file(model.state_dict(), folder / "base" / "model.safetensors")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["line", "plane", "point"], **settings)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder / "adapter"))
    return adapted


@pytest.mark.parametrize("rslora", [False, True])
def test_convolutions_fold_as_pefts_do(rslora: bool, tmp_path: Path) -> None:
    adapted = convolving(tmp_path, use_rslora=rslora)
    made = peftkit.merge(
        tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base", verify="off"
    )
    found = load_file(tmp_path / "merged" / "model.safetensors")
    expected = adapted.merge_and_unload().state_dict()
    assert found.keys() == expected.keys() and made.changed == 3
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"groups": 2},
            r"line.weight: the adapter fits \[6, 8, 3\], the base's",
        ),
        ({"use_dora": True}, r"lora_magnitude_vector.*: is not used by any change"),
    ],
)
def test_convolutions_that_peft_cannot_merge_or_turns_are_refused(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    convolving(tmp_path, **given)
    with pytest.raises(RunError, match=message):
        peftkit.merge(tmp_path / "adapter", tmp_path / "to", base=tmp_path / "base", verify="off")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_start_that_peft_converted_is_an_ordinary_lora(
    start: str, rslora: bool, tmp_path: Path
) -> None:
    whole = base(tmp_path / "base", "tiny-llama")
    config = peft.LoraConfig(
        r=4, init_lora_weights=start, use_rslora=rslora, target_modules=ALL, task_type=LANGUAGE
    )
    with quiet_peft():
        model = peft.get_peft_model(plain(whole), config)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide has it
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    held = tmp_path / "adapter"
    model.save_pretrained(
        str(held), path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    peftkit.merge(held, tmp_path / "merged", base=whole, verify="off")
    # here the base in memory lacks what the start took, and the adapter holds it
    expected = model.merge_and_unload()
    found = plain(tmp_path / "merged").state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
