"""Plans a merge: accounts for every tensor before a byte is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftkit.deltas.base import AdapterLayer, Shape, WeightDelta
from peftkit.errors import Fault, RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.mixing import combine_deltas
from peftkit.merging.outputs import MergePlan, Output
from peftkit.merging.tensor_names import EMBEDDINGS, HEADS, TensorNames, match_names
from peftkit.merging.weight_tying import settle_ties
from peftkit.storage.safetensors_files import TORCH_DTYPES, StoredTensor

MAX_LISTED_FAULTS = 8
TRANSPOSED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
"""The architectures, and their layers, with weights stored as (in, out): transformers' Conv1D."""

NamedDelta = tuple[str, WeightDelta]
"""A delta with the model's name of the tensor that it changes."""


def plan_merge(
    adapter: Adapter,
    shards: Mapping[str, Sequence[StoredTensor]],
    config: Mapping[str, Any],
    base_deltas: Mapping[str, WeightDelta] | None = None,
) -> MergePlan:
    """The plan for `adapter` on the base in `shards`, whose model configuration is `config`.

    `base_deltas`: changes to the base before the adapter, by the model's names. Raises `RunError`
    that names each tensor that does not fit, is missing or is not used.
    """
    base = {tensor.name: tensor for tensors in shards.values() for tensor in tensors}
    names = match_names([*adapter_names(adapter), *(base_deltas or ())], base)
    faults: list[Fault] = []
    outputs = {
        tensor.name: Output(names.in_output(name), tensor, tensor.dtype, base=tensor)
        for name, tensor in base.items()
    }
    added = replace_tensors(adapter, names, outputs, faults)
    if base_deltas:
        add_deltas(names, outputs, added, base_deltas.items(), faults)
    changes = settle_ties(adapter, names, outputs, added, config)
    deltas = adapter_deltas(adapter, names, outputs, added, config, faults)
    add_deltas(names, outputs, added, deltas, faults)
    check_used(adapter, [*outputs.values(), *added.values()], faults)
    if faults:
        raise_faults(adapter, faults)
    dropped = unused_heads(adapter, outputs)
    kept = {
        shard: tuple(outputs[t.name] for t in tensors if t.name not in dropped)
        for shard, tensors in shards.items()
    }
    last = list(kept)[-1]
    kept[last] = (*kept[last], *added.values())
    changes = {**changes, **vocabulary_change(outputs)}
    return MergePlan({k: v for k, v in kept.items() if v}, changes, tuple(dropped))


def adapter_names(adapter: Adapter) -> list[str]:
    """The model's names of the tensors that the adapter changes or replaces."""
    return [*(f"{layer}.weight" for layer in adapter.layers), *adapter.replaced]


def replace_tensors(
    adapter: Adapter, names: TensorNames, outputs: dict[str, Output], faults: list[Fault]
) -> dict[str, Output]:
    """Replace the base's tensors that were trained; returns those that the base does not have, by
    the model's names."""
    added: dict[str, Output] = {}
    for name, tensor in adapter.replaced.items():
        key = names.in_checkpoint(name)
        if key is None:
            if not may_be_added(adapter, name):
                what = f"{tensor.type_and_shape}: the base has no such tensor"
                faults.append(Fault(name, what))
            added[name] = Output(name, tensor, tensor.dtype)
            continue
        known = outputs[key]
        # the manifest proves the base: other rows are a head of its own, with other labels
        relabeled = bool(adapter.manifest) and tensor.shape[1:] == known.shape[1:]
        fits = tensor.shape == known.shape or is_resized(name, tensor, known.source)
        described = f"the base's is {known.source.type_and_shape}"
        if not fits and not relabeled:
            faults.append(Fault(name, f"{tensor.type_and_shape}: {described}"))
        elif known.dtype not in TORCH_DTYPES:
            faults.append(Fault(name, f"{described}, which cannot be replaced"))
        outputs[key] = replace(known, source=tensor)
    return added


def may_be_added(adapter: Adapter, name: str) -> bool:
    """Whether a tensor may be one that the base does not have: a head's."""
    if not adapter.config:
        return True  # an artifact of peftkit, whose manifest proves the base
    saved = adapter.config.get("modules_to_save") or ()
    return is_output_layer(name) or any(f".{entry}." in f".{name}" for entry in saved)


def is_output_layer(name: str) -> bool:
    """Whether a tensor is named like those of an output layer over the vocabulary."""
    return name.split(".")[0] in ("lm_head", "embed_out")


def is_embedding(name: str) -> bool:
    """Whether a tensor is named like those of the token embeddings."""
    return "." in name and name.split(".")[-2] in EMBEDDINGS


def is_resized(name: str, tensor: StoredTensor, known: StoredTensor) -> bool:
    """Whether it is the `known` tensor for another vocabulary."""
    return (is_embedding(name) or is_output_layer(name)) and tensor.shape[1:] == known.shape[1:]


def vocabulary_change(outputs: Mapping[str, Output]) -> dict[str, int]:
    """The new `vocab_size`, if the embeddings were resized.

    Raises `RunError` if an output layer has another size.
    """
    resized = [
        output
        for output in outputs.values()
        if is_embedding(output.name) and output.base and output.shape != output.base.shape
    ]
    if not resized:
        return {}
    size = resized[0].shape[0]
    for output in outputs.values():
        if is_output_layer(output.name) and output.shape[0] != size:
            raise RunError(
                f"{resized[0].name} was resized to {size} tokens, but {output.name} has "
                f"{output.shape[0]} - save the adapter with both (save_embedding_layers=True)"
            )
    return {"vocab_size": size}


def adapter_deltas(
    adapter: Adapter,
    names: TensorNames,
    outputs: Mapping[str, Output],
    added: Mapping[str, Output],
    config: Mapping[str, Any],
    faults: list[Fault],
) -> Iterable[NamedDelta]:
    """The adapter's deltas."""
    layers: dict[str, tuple[Shape, bool]] = {}
    for layer in adapter.layers:
        key = names.in_checkpoint(f"{layer}.weight")
        known = outputs[key] if key is not None else added.get(f"{layer}.weight")
        if known is None:
            faults.append(Fault(f"{layer}.weight", "the base has no such tensor"))
            continue
        has_bias = names.in_checkpoint(f"{layer}.bias") is not None
        layers[layer] = (known.shape, has_bias or f"{layer}.bias" in added)
    model_type = str(config.get("model_type", ""))
    deltas = [member_deltas(member, layers, model_type) for member in adapter.all_members]
    return deltas[0] if adapter.mix is None else combine_deltas(deltas, adapter.mix)


def member_deltas(
    adapter: Adapter, layers: Mapping[str, tuple[Shape, bool]], model_type: str
) -> list[NamedDelta]:
    """The deltas of one adapter; `layers` are each weight's shape and whether there is a bias."""
    deltas: list[NamedDelta] = []
    for strategy, config in adapter.strategies:
        own = [
            AdapterLayer(
                name=layer,
                weight_shape=shape,
                transposed=is_transposed(config, layer, shape, model_type),
                has_bias=has_bias,
                tensors=adapter.layers[layer],
                shared={},
                config=config,
            )
            for layer, (shape, has_bias) in layers.items()
            if layer in adapter.layers
        ]
        shared = strategy.share_tensors(own, adapter.shared)
        for layer in own:
            found = strategy.weight_deltas(replace(layer, shared=shared))
            deltas += [
                (f"{layer.name}.{key}", each) for key, some in found.items() for each in some
            ]
    return deltas


def is_transposed(config: Mapping[str, Any], layer: str, shape: Shape, model_type: str) -> bool:
    """Whether the layer's weight is stored as (in, out)."""
    if model_type in TRANSPOSED_MODELS:  # where PEFT's setting is wrong for a linear head
        return layer.rpartition(".")[2] in CONV1D_LAYERS
    return bool(config.get("fan_in_fan_out")) and len(shape) == 2


def add_deltas(
    names: TensorNames,
    outputs: dict[str, Output],
    added: dict[str, Output],
    deltas: Iterable[NamedDelta],
    faults: list[Fault],
) -> None:
    """Add deltas to their outputs, with each shape checked."""
    for name, delta in deltas:
        in_base = names.in_checkpoint(name)
        holder, key = (outputs, in_base) if in_base is not None else (added, name)
        if key not in holder:
            faults.append(Fault(name, "the base has no such tensor"))
            continue
        known = holder[key]
        described = known.source.type_and_shape
        if not delta.fits(known.shape):
            what = f"the adapter fits {delta.expected_shape}, the base's is {described}"
            faults.append(Fault(name, what))
        elif known.dtype not in TORCH_DTYPES:
            faults.append(Fault(name, f"is {described} in the base, which is not a float type"))
        holder[key] = replace(known, deltas=(*known.deltas, delta))


def check_used(adapter: Adapter, outputs: Sequence[Output], faults: list[Fault]) -> None:
    """Note each tensor of the adapter that no output uses."""
    deltas = [delta for output in outputs for delta in output.deltas]
    used = {tensor for delta in deltas for tensor in (*delta.tensors, *delta.shared_tensors)}
    known = {fault.where for fault in faults}
    left = [
        tensor
        for layer, tensors in adapter.layers.items()
        if f"{layer}.weight" not in known
        for tensor in tensors.values()
    ]
    left += [tensor for member in adapter.all_members for tensor in member.shared.values()]
    for tensor in left:
        if tensor not in used:
            what = f"{tensor.type_and_shape}: is not used by any change of the base"
            faults.append(Fault(tensor.name, what))


def raise_faults(adapter: Adapter, faults: Sequence[Fault]) -> None:
    """Raise the error that lists what does not fit."""
    more = len(faults) - MAX_LISTED_FAULTS
    rest = [Fault("...", f"and {more} more")] if more > 0 else []
    raise RunError(
        f"{adapter.folder}: is not an adapter of this base - name the one it was trained on with "
        "--base:" + "".join(f"\n  {fault}" for fault in [*faults[:MAX_LISTED_FAULTS], *rest])
    )


def unused_heads(adapter: Adapter, outputs: Mapping[str, Output]) -> list[str]:
    """The base's tensors of a head that the adapter's head replaces."""
    if not adapter.trains_head:
        return []
    return [
        name
        for name, output in outputs.items()
        if name.split(".")[0] in HEADS and not output.is_touched
    ]
