"""Strategies, one file per method. Subclass `Strategy` or `PeftStrategy` to add one."""

from peftkit.deltas.base import AdapterLayer, ComputedDelta, Deltas, WeightDelta
from peftkit.models.architectures import find_target_layers
from peftkit.models.bottleneck import keep as add_module
from peftkit.strategies.base import (
    ExportedModule,
    LRMultiplier,
    PeftStrategy,
    Strategy,
    TrainingHook,
    module_tensors,
    saved_heads,
    train_head,
)

__all__ = [
    "AdapterLayer",
    "ComputedDelta",
    "Deltas",
    "ExportedModule",
    "LRMultiplier",
    "PeftStrategy",
    "Strategy",
    "TrainingHook",
    "WeightDelta",
    "add_module",
    "find_target_layers",
    "module_tensors",
    "saved_heads",
    "train_head",
]
