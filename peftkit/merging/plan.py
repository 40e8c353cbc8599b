"""The plan of a merge: every tensor of the output accounted for before a byte is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftkit.errors import Fault, RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.checkpoint.naming import EMBEDDINGS, OLD_HEADS, Names, naming
from peftkit.merging.checkpoint.tensors import FLOATS, Stored
from peftkit.merging.deltas.low_rank import Fold
from peftkit.merging.mixing import mixtures
from peftkit.merging.outputs import Output, Plan
from peftkit.merging.peft_methods import folds_of
from peftkit.merging.tying import settle_ties

MOST_FAULTS = 8


def plan(
    adapter: Adapter,
    shards: Mapping[str, Sequence[Stored]],
    config: Mapping[str, Any],
    before: Mapping[str, Fold] | None = None,
) -> Plan:
    """The plan for `adapter` on the base in `shards`, whose configuration is `config`.

    `before`: what becomes of tensors before the adapter (by the model's names). Raises `RunError`
    that names each tensor which does not fit, is left over or is not there.
    """
    there = {tensor.name: tensor for tensors in shards.values() for tensor in tensors}
    names = naming([*wanted(adapter), *(before or ())], there)
    faults: list[Fault] = []
    outputs = {
        tensor.name: Output(names.in_output(name), tensor, tensor.dtype, base=tensor)
        for name, tensor in there.items()
    }
    fresh = replace_tensors(adapter, names, outputs, faults)
    if before:
        add_folds(names, outputs, fresh, before.items(), faults)
    changes = settle_ties(adapter, names, outputs, fresh, config)
    add_folds(
        names, outputs, fresh, adapter_folds(adapter, names, outputs, fresh, config, faults), faults
    )
    check_used(adapter, [*outputs.values(), *fresh.values()], faults)
    if faults:
        refuse(adapter, faults)
    dropped = old_heads(adapter, outputs)
    kept = {
        shard: tuple(outputs[t.name] for t in tensors if t.name not in dropped)
        for shard, tensors in shards.items()
    }
    last = list(kept)[-1]
    kept[last] = (*kept[last], *fresh.values())
    shapes = vocabulary(outputs)
    return Plan({k: v for k, v in kept.items() if v}, {**changes, **shapes}, tuple(dropped))


def wanted(adapter: Adapter) -> list[str]:
    """The model's names of the tensors that the adapter speaks of."""
    return [*(f"{module}.weight" for module in adapter.modules), *adapter.replaced]


def replace_tensors(
    adapter: Adapter, names: Names, outputs: dict[str, Output], faults: list[Fault]
) -> dict[str, Output]:
    """Put what was trained whole in its place; what the base does not have, by the model's name."""
    fresh: dict[str, Output] = {}
    for name, tensor in adapter.replaced.items():
        place = names.in_checkpoint(name)
        if place is None:
            if not may_be_new(adapter, name):
                faults.append(Fault(name, f"{tensor.said}: the base has no such tensor"))
            fresh[name] = Output(name, tensor, tensor.dtype)
            continue
        known = outputs[place]
        # a sealed base is the right one: what has other rows there is its own head, for others
        relabeled = bool(adapter.sealed) and tensor.shape[1:] == known.shape[1:]
        fits = tensor.shape == known.shape or resizes(name, tensor, known.source)
        if not fits and not relabeled:
            faults.append(Fault(name, f"{tensor.said}: the base's is {known.source.said}"))
        elif known.dtype not in FLOATS:
            faults.append(
                Fault(name, f"the base's is {known.source.said}, which cannot be replaced")
            )
        outputs[place] = replace(known, source=tensor)
    return fresh


def may_be_new(adapter: Adapter, name: str) -> bool:
    """Whether a tensor may be one that the base does not have: a head's."""
    if not adapter.config:
        return True  # an artifact of ours is sealed, and its base the right one
    saved = adapter.config.get("modules_to_save") or ()
    return is_head(name) or any(f".{entry}." in f".{name}" for entry in saved)


def is_head(name: str) -> bool:
    """Whether it is called like the weights above the embeddings' twin."""
    return name.split(".")[0] in ("lm_head", "embed_out")


def resizes(name: str, tensor: Stored, known: Stored) -> bool:
    """Whether it is the same for another vocabulary."""
    layer = name.split(".")[-2] if "." in name else ""
    return (layer in EMBEDDINGS or is_head(name)) and tensor.shape[1:] == known.shape[1:]


def vocabulary(outputs: Mapping[str, Output]) -> dict[str, int]:
    """The new number of tokens, where the embeddings have another number of rows."""
    for output in outputs.values():
        layer = output.name.split(".")[-2] if "." in output.name else ""
        if layer in EMBEDDINGS and output.base and output.shape != output.base.shape:
            check_heads(outputs, output)
            return {"vocab_size": output.shape[0]}
    return {}


def check_heads(outputs: Mapping[str, Output], resized: Output) -> None:
    """Refuse a head that is not of the resized vocabulary."""
    for output in outputs.values():
        if is_head(output.name) and output.shape[0] != resized.shape[0]:
            raise RunError(
                f"{resized.name} was resized to {resized.shape[0]} tokens, {output.name} has "
                f"{output.shape[0]} - save the adapter with both (save_embedding_layers=True)"
            )


def adapter_folds(
    adapter: Adapter,
    names: Names,
    outputs: Mapping[str, Output],
    fresh: Mapping[str, Output],
    config: Mapping[str, Any],
    faults: list[Fault],
) -> Iterable[tuple[str, Fold]]:
    """What becomes of which tensor, by the model's names."""
    shapes = {}
    for module in adapter.modules:
        place = names.in_checkpoint(f"{module}.weight")
        known = outputs[place] if place is not None else fresh.get(f"{module}.weight")
        if known is None:
            faults.append(Fault(f"{module}.weight", "the base has no such tensor"))
            continue
        shapes[module] = known.shape
    found = []
    for member in adapter.single:
        own = {module: shape for module, shape in shapes.items() if module in member.modules}
        found.append(folds_of_all(member, names, own, str(config.get("model_type", ""))))
    return found[0] if adapter.mix is None else mixtures(found, adapter.mix)


def folds_of_all(
    adapter: Adapter, names: Names, shapes: Mapping[str, tuple[int, ...]], kind: str
) -> list[tuple[str, Fold]]:
    """What one adapter's layers come to, where their weights have these shapes."""
    sized = with_largest(adapter, shapes)
    found = []
    for module, shape in shapes.items():
        for leaf, fold in folds_of(sized, module, adapter.modules[module], shape, kind):
            name = f"{module}.{leaf.removesuffix('?')}"
            if leaf.endswith("?") and names.in_checkpoint(name) is None:
                continue
            found.append((name, fold))
    return found


def with_largest(adapter: Adapter, shapes: Mapping[str, Sequence[int]]) -> Adapter:
    """The adapter with the size of projections that fit all of its layers: VeRA draws such."""
    if adapter.kind != "VERA" or not shapes:
        return adapter
    sizes = [
        (p["vera_lambda_b"].shape[0], shapes[m])
        for m, p in adapter.modules.items()
        if m in shapes and "vera_lambda_b" in p
    ]
    if not sizes:
        return adapter
    wide = max(out for out, _ in sizes)
    # where it lies transposed, the outputs are the last axis
    narrow = max(shape[1] if shape[0] == out else shape[0] for out, shape in sizes)
    return replace(adapter, config={**adapter.config, "largest": (wide, narrow)})


def add_folds(
    names: Names,
    outputs: dict[str, Output],
    fresh: dict[str, Output],
    folds: Iterable[tuple[str, Fold]],
    faults: list[Fault],
) -> None:
    """Put folds to their tensors, each shape checked."""
    for name, fold in folds:
        place = names.in_checkpoint(name)
        holder, key = (outputs, place) if place is not None else (fresh, name)
        if key not in holder:
            faults.append(Fault(name, "the base has no such tensor"))
            continue
        known = holder[key]
        if not fold.fits(known.shape):
            what = f"the adapter fits {fold.expects()}, the base's is {known.source.said}"
            faults.append(Fault(name, what))
        elif known.dtype not in FLOATS:
            faults.append(Fault(name, f"is {known.source.said} in the base, which is no float"))
        holder[key] = replace(known, folds=(*known.folds, fold))


def check_used(adapter: Adapter, outputs: Sequence[Output], faults: list[Fault]) -> None:
    """Note each tensor of the adapter that nothing takes."""
    used = {part for output in outputs for fold in output.folds for part in fold.parts}
    known = {fault.where for fault in faults}
    for module, parts in adapter.modules.items():
        if f"{module}.weight" in known:
            continue
        for part in parts.values():
            if part not in used:
                faults.append(Fault(part.name, f"{part.said}: is left over, nothing takes it"))
    for member in adapter.single:
        if member.kind == "VERA" and member.config.get("save_projection", True):
            continue
        for part in member.shared.values():
            faults.append(Fault(part.name, f"{part.said}: is left over, nothing takes it"))


def refuse(adapter: Adapter, faults: Sequence[Fault]) -> None:
    """Raise the error that lists what does not fit."""
    more = len(faults) - MOST_FAULTS
    listed = [*faults[:MOST_FAULTS], *([Fault("...", f"and {more} more")] if more > 0 else [])]
    raise RunError(
        f"{adapter.folder}: is not an adapter of this base - name the one it was trained on with "
        "--base:" + "".join(f"\n  {fault}" for fault in listed)
    )


def old_heads(adapter: Adapter, outputs: Mapping[str, Output]) -> list[str]:
    """The base's tensors of a head that another one takes the place of."""
    if not adapter.trains_head:
        return []
    return [
        place
        for place, output in outputs.items()
        if place.split(".")[0] in OLD_HEADS and not output.touched
    ]
