"""Subtracting: an adapter taken out of a merged checkpoint, and how near that comes to the base."""

from dataclasses import replace
from pathlib import Path

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.inputs import base_folder
from peftkit.merging.plan import Plan
from peftkit.merging.tensors import FLOATS, load, open_checkpoint


def subtracted(adapter: Adapter) -> Adapter:
    """The adapter without what was trained whole, which only the base knows."""
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
    """The largest difference of a weight in `folder` from the original base; None: it is not here."""
    try:
        base = base_folder(adapter, None, subtract=False)
        original = {t.name: t for ts in open_checkpoint(base).values() for t in ts}
    except RunError:
        return None
    largest = 0.0
    for tensors in open_checkpoint(folder).values():
        for tensor in tensors:
            known = original.get(tensor.name)
            if known is not None and tensor.dtype in FLOATS and known.shape == tensor.shape:
                largest = max(largest, float((load(tensor) - load(known)).abs().max()))
    return largest
