"""Attaches the bottlenecks of adapters and Compacter to a plain transformers model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN


class KroneckerLinear(nn.Module):
    """x W + b, W the sum over i of A_i (x) (s_i t_i) (Compacter, arXiv:2106.04647, equation 6)."""

    def __init__(self, rule: nn.Parameter, s: Tensor, t: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.rule = rule
        self.s, self.t, self.bias = nn.Parameter(s), nn.Parameter(t), nn.Parameter(bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., size in) to (..., size out)."""
        products = torch.einsum("iab,icr,ird->acbd", self.rule, self.s, self.t)
        return states @ products.reshape(-1, len(self.bias)) + self.bias


def layer_of(name: str, rule: nn.Parameter | None, tensors: dict[str, Tensor]) -> nn.Module:
    """One of a bottleneck's two layers, from its saved tensors."""
    if rule is not None:
        s, t, bias = (tensors.pop(f"{name}.{part}") for part in ("s", "t", "bias"))
        return KroneckerLinear(rule, s, t, bias)
    weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def attach(model: Any, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Add scale * up(f(down(x))) to a layer's output; x is that, or another layer's input."""
    name, rule = settings["name"], None
    if "rule" in settings:  # all bottlenecks share it
        shared = f"{settings['rule']}.matrices"
        if shared in tensors:
            model.kronecker_rule = nn.Parameter(tensors.pop(shared))
        rule = model.kronecker_rule
    down, up = (layer_of(f"{name}.{part}", rule, tensors) for part in (0, 2))
    bottleneck = nn.Sequential(down, ACT2FN[settings["activation"]], up)
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner).add_module(key, bottleneck)
    entering: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entering[:] = [inputs[0]]

    def add(_: nn.Module, __: Any, output: Tensor) -> Any:
        added: Tensor = bottleneck(entering.pop() if settings["input_of"] else output)
        return output + settings["scale"] * added

    if settings["input_of"]:
        model.get_submodule(settings["input_of"]).register_forward_pre_hook(take)
    model.get_submodule(settings["output_of"]).register_forward_hook(add)
