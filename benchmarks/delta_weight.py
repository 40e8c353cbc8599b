"""PEFT's `get_delta_weight` on one layer, against the streamed deltas of a merge.

    python benchmarks/delta_weight.py lora|loha|lokr|vera peft|peftkit

merges one layer of 4096 x 4096 stored in bf16, and prints seconds, peak memory above the start and
the sha256 of the merged weight.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peftkit.merging.merge import merge
from peftkit.runtime.peak_memory import peak_resident_bytes, reset_peak_bytes

SIZE = 4096
CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=16, target_modules=["layer"]),
    "loha": peft.LoHaConfig(r=16, target_modules=["layer"]),
    "lokr": peft.LoKrConfig(r=16, target_modules=["layer"]),
    "vera": peft.VeraConfig(r=256, target_modules=["layer"]),
}


class Model(torch.nn.Module):
    """A model of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(SIZE, SIZE, bias=False)


def make(folder: Path, method: str) -> None:
    """A base and an adapter in `folder`."""
    torch.manual_seed(0)
    model = Model().to(torch.bfloat16)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text('{"model_type": "none"}')
    save_file(model.state_dict(), folder / "base" / "model.safetensors")
    adapted = peft.get_peft_model(model, CONFIGS[method])
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder / "adapter"))


def with_peft(folder: Path) -> None:
    """The merged layer by PEFT: its layer on one weight that is read alone, in fp32."""
    with torch.device("meta"):
        model = Model()
    with safe_open(folder / "base" / "model.safetensors", framework="pt") as file:
        weight = file.get_tensor("layer.weight")
    model.layer.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    adapted = peft.PeftModel.from_pretrained(model, str(folder / "adapter"))
    layer: Any = adapted.base_model.model.layer
    merged = model.layer.get_base_layer().weight.data.add_(layer.get_delta_weight("default"))
    (folder / "merged").mkdir()
    tensors = {"layer.weight": merged.to(torch.bfloat16)}
    save_file(tensors, folder / "merged" / "model.safetensors")


def main(method: str, by: str) -> None:
    """Merge once, and print what it cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, method)
        reset_peak_bytes()
        before, start = peak_resident_bytes(), time.perf_counter()
        if by == "peft":
            with_peft(folder)
        else:
            merge(folder / "adapter", folder / "merged", base=folder / "base", verify="off")
        seconds = time.perf_counter() - start
        memory = (peak_resident_bytes() - before) / 2**20
        with safe_open(folder / "merged" / "model.safetensors", framework="pt") as file:
            content = file.get_tensor("layer.weight").view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        print(f"{method:5} {by:8} {seconds:6.2f} s  {memory:5.0f} MiB  sha256 {digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
