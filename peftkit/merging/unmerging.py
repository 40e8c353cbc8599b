"""Unmerging: subtracts an adapter from a merged checkpoint, and compares that with the base."""

from dataclasses import replace
from pathlib import Path

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.inputs import base_folder
from peftkit.merging.outputs import MergePlan
from peftkit.merging.tensor_names import HEADS, match_names
from peftkit.storage.safetensors_files import (
    TORCH_DTYPES,
    StoredTensor,
    load_tensor,
    open_checkpoint,
)

ROUNDING = {"F32": 1e-5, "F16": 2**-9, "BF16": 2**-6, "F64": 1e-5}
"""What rounding twice may change, relative to a tensor's largest element."""


def drop_head(adapter: Adapter) -> Adapter:
    """The adapter without its head.

    Raises `RunError` if it replaces other tensors, which cannot be restored.
    """
    whole = sorted(name for name in adapter.replaced if name.split(".")[0] not in HEADS)
    if whole:
        raise RunError(
            f"{adapter.folder}: {whole[0]} was trained itself, and cannot be restored by "
            "subtracting - use the base"
        )
    return replace(adapter, replaced={})


def check_subtraction(adapter: Adapter, plan: MergePlan) -> None:
    """Raise `RunError` unless every change is an addition."""
    deltas = [(output.name, delta) for output in plan.outputs for delta in output.deltas]
    other = [name for name, delta in deltas if not delta.additive]
    if other or not deltas:
        changed = f"{other[0]} was" if other else "every tensor was"
        raise RunError(
            f"{adapter.folder}: {changed} not changed by an addition, and cannot be restored by "
            "subtracting - use the base"
        )


def restored_difference(adapter: Adapter, folder: Path) -> float | None:
    """The largest difference of a weight in `folder` from the original base.

    None if the base is not available, or was quantized while the adapter was trained. Raises
    `RunError` if rounding does not explain the difference.
    """
    if adapter.manifest.get("quantize", {"kind": "none"})["kind"] != "none":
        return None
    try:
        original = tensors_in(base_folder(adapter, None, subtract=False))
    except RunError:
        return None
    restored = tensors_in(folder)
    names, largest = match_names(list(restored), original), 0.0
    for name, tensor in restored.items():
        known = original.get(names.in_checkpoint(name) or "")
        if known is None or tensor.dtype not in TORCH_DTYPES or known.shape != tensor.shape:
            continue
        expected = load_tensor(known)
        difference = float((load_tensor(tensor) - expected).abs().max())
        if difference > ROUNDING[tensor.dtype] * max(1e-3, float(expected.abs().max())):
            raise RunError(
                f"{name}: differs by {difference:.2g} from the original base, more than rounding "
                "explains - this checkpoint does not hold the adapter, or holds others too"
            )
        largest = max(largest, difference)
    return largest


def tensors_in(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint, by name."""
    return {tensor.name: tensor for shard in open_checkpoint(folder).values() for tensor in shard}
