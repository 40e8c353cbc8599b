"""Subtracting: an adapter taken out of a merged checkpoint, and how near that comes to the base."""

from dataclasses import replace
from pathlib import Path

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.checkpoint.naming import OLD_HEADS, naming
from peftkit.merging.checkpoint.tensors import FLOATS, Stored, load, open_checkpoint
from peftkit.merging.inputs import base_folder
from peftkit.merging.outputs import Plan

ROUNDING = {"F32": 1e-5, "F16": 2**-9, "BF16": 2**-6, "F64": 1e-5}
"""Of a tensor's largest number: what rounding twice may leave."""


def subtracted(adapter: Adapter) -> Adapter:
    """The adapter without the head, which goes.

    Raises `RunError` for what was trained whole: only the base knows what was there before.
    """
    whole = sorted(name for name in adapter.replaced if name.split(".")[0] not in OLD_HEADS)
    if whole:
        raise RunError(
            f"{adapter.folder}: {whole[0]} was trained whole, and what was there before cannot be "
            "restored by subtracting - take the base itself"
        )
    return replace(adapter, replaced={})


def check_subtraction(adapter: Adapter, planned: Plan) -> None:
    """Refuse what adds nothing that could be subtracted."""
    folds = [(o.name, f) for o in planned.outputs for f in o.folds]
    other = [name for name, fold in folds if not fold.additive]
    if other or not folds:
        named = f"{other[0]} was" if other else "every tensor was"
        raise RunError(
            f"{adapter.folder}: {named} not changed by adding to it, and can't be restored by "
            "subtracting - take the base itself"
        )


def restored(adapter: Adapter, folder: Path) -> float | None:
    """The largest difference of a weight in `folder` from the original base.

    None where the base is not at hand, or was quantized while the adapter was trained. Raises
    `RunError` where it is more than rounding leaves.
    """
    if adapter.sealed.get("quantize", {"kind": "none"})["kind"] != "none":
        return None
    try:
        original = tensors_in(base_folder(adapter, None, subtract=False))
    except RunError:
        return None
    made = tensors_in(folder)
    names, largest = naming(list(made), original), 0.0
    for name, tensor in made.items():
        known = original.get(names.in_checkpoint(name) or "")
        if known is None or tensor.dtype not in FLOATS or known.shape != tensor.shape:
            continue
        was = load(known)
        apart = float((load(tensor) - was).abs().max())
        if apart > ROUNDING[tensor.dtype] * max(1e-3, float(was.abs().max())):
            raise RunError(
                f"{name}: differs by {apart:.2g} from the original base, which is more than "
                "rounding leaves - the adapter is not, or not alone, in this checkpoint"
            )
        largest = max(largest, apart)
    return largest


def tensors_in(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint, by name."""
    return {tensor.name: tensor for shard in open_checkpoint(folder).values() for tensor in shard}
