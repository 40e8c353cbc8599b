"""Expecting: what base + several adapters should say, built in memory from PEFT's own merges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peftkit.merging.adapters import Adapter
from peftkit.merging.mixing import combine
from peftkit.merging.verification.models import adapted

WRAPPED = "base_model.model."
"""What PEFT puts in front of the model's names."""


def expected(
    adapter: Adapter, base: Path, merged: Path, onto: str, dtype: torch.dtype
) -> nn.Module:
    """The base with the adapter on it, or with what several adapters come to."""
    if adapter.mix is None:
        return adapted(adapter, base, merged, onto, dtype)
    differences: dict[str, dict[int, Tensor]] = {}
    chosen: nn.Module | None = None
    for number, member in enumerate(adapter.members):
        model = adapted(member, base, merged, onto, dtype)
        for name, difference in taken(model):
            differences.setdefault(name, {})[number] = difference
        if chosen is None and member.folder == adapter.folder:
            chosen = model
    assert chosen is not None, "the head is one of the members'"
    for name, found in differences.items():
        module, _, leaf = name.rpartition(".")
        layer: Any = chosen.get_submodule(f"{WRAPPED}{module}")
        layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        moved = getattr(layer, leaf).detach() + combine(adapter.mix, name, found, [*found.values()])
        setattr(layer, leaf, nn.Parameter(moved))  # a new one: tied weights part here
    return chosen


def taken(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What the adapter adds to each tensor, by the model's names; the model is the base then."""
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)
    ]
    for name, layer in layers:
        base = layer.get_base_layer()
        leaves = ["weight", *(["bias"] if getattr(layer, "lora_bias", {}).get("default") else [])]
        before = {leaf: getattr(base, leaf).data for leaf in leaves}
        layer.double()  # so that nothing is lost where a large weight is taken off again
        layer.merge()
        for leaf, was in before.items():
            after = getattr(base, leaf).data
            yield f"{name.removeprefix(WRAPPED)}.{leaf}", (after - was.double()).float()
        layer.merged_adapters.clear()
        layer.float()
        for leaf, was in before.items():
            getattr(base, leaf).data = was
        layer.enable_adapters(False)
