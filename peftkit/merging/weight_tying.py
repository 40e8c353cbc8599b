"""Tied weights: keeps an output layer tied to the embeddings, or unties them if they differ."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.model_classes import is_language_model
from peftkit.merging.outputs import Output
from peftkit.merging.tensor_names import EMBEDDINGS, TensorNames
from peftkit.storage.safetensors_files import StoredTensor, load_tensor

OUTPUT_LAYERS = ("lm_head.weight", "embed_out.weight")
"""The output layers that can be tied to the token embeddings."""
UNTIED = {"tie_word_embeddings": False}
"""The change to the configuration of a model that is no longer tied."""


def settle_ties(
    adapter: Adapter,
    names: TensorNames,
    outputs: dict[str, Output],
    added: dict[str, Output],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Give the model an output layer of its own, in `added`, if it differs from the embeddings.

    Returns the changes to the configuration.
    """
    if adapter.trains_head or not is_language_model(config):
        return {}
    replace_copies(adapter, outputs, config)
    head = next((h for h in OUTPUT_LAYERS if names.in_checkpoint(h) is not None), None)
    if head is not None and config.get("tie_word_embeddings") is False:
        return {}
    changed = {names.in_checkpoint(f"{layer}.weight") for layer in adapter.layers}
    changed |= {name for name, output in outputs.items() if output.is_touched}
    embeddings = embeddings_of(outputs, changed)
    if embeddings is None:
        return {}
    if head is not None:  # a checkpoint with both, though its configuration ties them
        one_changed = (names.in_checkpoint(head) in changed) != (embeddings in changed)
        return UNTIED if config.get("tie_word_embeddings") and one_changed else {}
    name = "embed_out.weight" if config.get("model_type") == "gpt_neox" else "lm_head.weight"
    adapts_output = name.removesuffix(".weight") in adapter.layers
    differs = adapts_output or trains_embeddings_alone(adapter, names, embeddings)
    if name in added:  # PEFT saves both if one is adapted, or the vocabulary was resized
        if not differs and are_equal(added[name].source, outputs[embeddings].source):
            added.pop(name)
            return {}
        return UNTIED
    if not differs:
        return {}
    base = outputs[embeddings].base
    assert base is not None
    added[name] = replace(outputs[embeddings], name=name, source=base, base=base, deltas=())
    return UNTIED


def replace_copies(adapter: Adapter, outputs: dict[str, Output], config: Mapping[str, Any]) -> None:
    """Replace every copy of a table that a run of peftkit trained: old T5 checkpoints hold one
    table under several names."""
    tables = {name: output for name, output in outputs.items() if is_table(name, config)}
    trained = [each for each in tables.values() if each.is_touched and each.base is not None]
    for output in trained if adapter.manifest else ():
        assert output.base is not None
        for name, other in tables.items():
            if not other.is_touched and are_equal(other.source, output.base):
                outputs[name] = replace(other, source=output.source)


def is_table(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is the token embeddings, or an output layer that may be tied to them."""
    if ".layer" in name:
        return False
    tied = () if config.get("tie_word_embeddings") is False else OUTPUT_LAYERS
    return name.endswith((*tied, *(f"{e}.weight" for e in EMBEDDINGS)))


def embeddings_of(outputs: Mapping[str, Output], changed: AbstractSet[str | None]) -> str | None:
    """The checkpoint's name of the token embeddings.

    Raises `RunError` if there are several and only some are `changed`.
    """
    found = [name for name in outputs if is_table(name, UNTIED)]
    if 0 < len(changed & {*found}) < len(found):
        raise RunError(
            f"the base has several token embeddings ({', '.join(sorted(found)[:4])}), and it is "
            "not known which the output layer is tied to - merge with PEFT"
        )
    return found[0] if found else None


def trains_embeddings_alone(adapter: Adapter, names: TensorNames, embeddings: str) -> bool:
    """Whether PEFT trained the embeddings without the output layer that is tied to them."""
    if not adapter.config or adapter.config.get("ensure_weight_tying"):
        return False
    adapted = {
        names.in_checkpoint(f"{layer}.weight")
        for layer, tensors in adapter.layers.items()
        if "trainable_tokens_delta" not in tensors  # which PEFT ties
    }
    saved = adapter.config.get("modules_to_save") or ()
    replaced = {
        names.in_checkpoint(name)
        for name in adapter.replaced
        if any(f".{entry}." in f".{name}" for entry in saved)
    }
    return embeddings in adapted | replaced


def are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal, element by element."""
    return one.shape == other.shape and bool((load_tensor(one) == load_tensor(other)).all())
