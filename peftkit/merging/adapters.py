"""`Adapter`: what an artifact of peftkit, or a plain PEFT folder, holds, with only headers read."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.errors import RunError
from peftkit.merging.mixing import Mix
from peftkit.records.artifact import manifest_path, read_manifest, refuse_pickles
from peftkit.records.run_dir import RunDir
from peftkit.storage.safetensors_files import StoredTensor, read_header
from peftkit.strategies.base import PeftStrategy, Strategy, strategy_for
from peftkit.tasks.base import Task

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
WRAPPERS = re.compile(
    r"\.(base_layer|token_adapter|ln_tuning_layers(\.default)?|modules_to_save(\.default)?)\."
)
"""What PEFT inserts into the names of the base's layers."""
PEFT_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""PEFT's task types whose models have a new head, which is trained with the adapter."""

Configured = tuple[type[Strategy], Mapping[str, Any]]
"""A strategy that merges tensors of an adapter, with the `AdapterLayer.config` of its layers."""


@dataclass(frozen=True)
class Adapter:
    """A trained adapter, or several that are merged as one."""

    folder: Path
    method: str
    """PEFT's name of the method ('LORA'), or the strategy's kind."""
    config: Mapping[str, Any]
    """PEFT's configuration; empty if PEFT does not merge it."""
    strategies: tuple[Configured, ...]
    """The strategies that say how its layers are merged."""
    layers: Mapping[str, Mapping[str, StoredTensor]]
    """The adapter's tensors of each layer: 'lora_A', without the layer's name."""
    replaced: Mapping[str, StoredTensor]
    """Tensors that replace those of the model, by the model's names."""
    shared: Mapping[str, StoredTensor]
    """Tensors that all layers share."""
    run: RunDir | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The artifact's manifest; empty for a plain PEFT folder."""
    members: "tuple[Adapter, ...]" = ()
    """Of several adapters: each; `layers` are those of all, the other fields are those of the
    adapter whose head is kept."""
    mix: Mix | None = None
    """How the members are combined."""

    @property
    def all_members(self) -> "tuple[Adapter, ...]":
        """The members, or the adapter alone."""
        return self.members or (self,)

    @property
    def task(self) -> Task | None:
        """The task of an artifact of peftkit, with its fitted state."""
        settings = self.manifest.get("task")
        if settings is None:
            return None
        return Task.parse(dict(settings), "task").with_fitted_state(
            self.manifest.get("fitted_state", {})
        )

    @property
    def trains_head(self) -> bool:
        """Whether it has a head that the base may not have."""
        if (task := self.task) is not None:
            return task.trains_head
        return self.config.get("task_type") in PEFT_HEADS


def open_adapter(path: Path) -> Adapter:
    """The adapter at `path`: a run, its artifact, or a plain PEFT folder.

    Raises `RunError` if it is none of these, is pickled or damaged, or cannot be merged.
    """
    if (path / "run.json").is_file():
        return open_artifact(RunDir.open(path).artifact, RunDir(path))
    if manifest_path(path).is_file():
        run = RunDir(path.parent) if (path.parent / "run.json").is_file() else None
        return open_artifact(path, run)
    return open_peft_folder(path)


def open_artifact(folder: Path, run: RunDir | None) -> Adapter:
    """An artifact of peftkit.

    Raises `RunError` if its strategy or its task cannot be merged.
    """
    adapter = read_artifact(folder, run)
    strategy, path = strategy_of(adapter), run.path if run is not None else folder
    if not strategy.mergeable:
        raise RunError(
            f"{path}: 'strategy: {strategy.kind}' cannot be merged: it adds modules that the "
            f"model's class does not have - use peftkit export {path} --to DIR"
        )
    task = adapter.task
    if task is not None and task.markers():
        raise RunError(
            f"{path}: 'task: {task.kind}' cannot be merged: it adds markers to the vocabulary and "
            "reads the model at them, which no class of transformers does - use "
            f"peftkit export {path} --to DIR"
        )
    return adapter


def strategy_of(adapter: Adapter) -> Strategy:
    """The strategy of an artifact of peftkit."""
    if adapter.run is not None:
        return adapter.run.recipe.strategy
    return Strategy.parse(dict(adapter.manifest["strategy"]), "strategy")


def read_artifact(folder: Path, run: RunDir | None) -> Adapter:
    """An artifact of peftkit, also one that cannot be merged."""
    manifest = read_manifest(folder)
    settings = dict(manifest["strategy"])
    strategy = run.recipe.strategy if run is not None else Strategy.parse(settings, "strategy")
    parts = [part for part in strategy.components() if part.mergeable]
    in_peft = any(isinstance(part, PeftStrategy) for part in parts)
    config = read_config(folder) if in_peft else {}
    configured = [
        (merging_strategy(folder, config, type(part)), config)
        if isinstance(part, PeftStrategy)
        else (type(part), part.to_dict())
        for part in parts
    ]
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(file)
    method = str(config.get("peft_type", strategy.kind))
    sorted_tensors = sort_tensors(folder, tensors, configured)
    return Adapter(folder, method, config, tuple(configured), *sorted_tensors, run, manifest)


def open_peft_folder(folder: Path) -> Adapter:
    """A folder that PEFT saved."""
    refuse_pickles(folder)
    missing = [name for name in (PEFT_CONFIG, PEFT_TENSORS) if not (folder / name).is_file()]
    if missing:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise RunError(
            f"{folder}: is neither a run, an artifact nor a PEFT folder: {' and '.join(missing)} "
            f"missing (found {', '.join(found[:10]) or 'no files'}) - name one of these"
        )
    config = read_config(folder)
    configured = ((merging_strategy(folder, config), config),)
    tensors = sort_tensors(folder, read_header(folder / PEFT_TENSORS), configured)
    return Adapter(folder, str(config["peft_type"]), config, configured, *tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration in `folder`."""
    path = folder / PEFT_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}) - restore it from a copy") from None
    if not isinstance(config, dict):
        raise RunError(f"{path}: is not a JSON object - restore it from a copy")
    return config


def merging_strategy(
    folder: Path, config: Mapping[str, Any], trained: type[PeftStrategy] | None = None
) -> type[PeftStrategy]:
    """The strategy that merges adapters of PEFT's method in `config`: the one that it was `trained`
    with, if that merges this method.

    Raises `RunError` if none does, or the configuration cannot be merged.
    """
    method = str(config.get("peft_type", ""))
    own = trained if trained is not None and method in trained.peft_types else None
    strategy = own or strategy_for(method)
    if strategy is None:
        raise RunError(
            f"{folder}: PEFT's {method or 'unnamed method'} cannot be merged: no strategy defines "
            "its weight_deltas - load it with PEFT on top of its base"
        )
    if (reason := strategy.check_merge(config)) is not None:
        raise RunError(
            f"{folder}: cannot be merged: {reason} - load it with PEFT on top of its base"
        )
    return strategy


SortedTensors = tuple[
    dict[str, dict[str, StoredTensor]], dict[str, StoredTensor], dict[str, StoredTensor]
]


def sort_tensors(
    folder: Path, tensors: Mapping[str, StoredTensor], strategies: Iterable[Configured]
) -> SortedTensors:
    """An adapter's tensors: those of layers, those that replace the model's, those that are shared.

    Raises `RunError` if two names mean the same tensor.
    """
    classes = [strategy for strategy, _ in strategies]
    of_layers = [name for each in classes for name in each.layer_tensors]
    pattern = re.compile(
        rf"(?P<layer>.+)\.(?P<name>{'|'.join(of_layers) or '(?!)'})(\.default)?(\.(?P<leaf>\w+))?"
    )
    of_all = {name for each in classes for name in each.shared_tensors}
    layers: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    shared: dict[str, StoredTensor] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("base_model.model.")
        common = full_name.removeprefix("base_model.").removesuffix(".default")
        if common in of_all:
            known = shared.setdefault(common, tensor)
        elif (match := pattern.fullmatch(name)) is None:
            known = replaced.setdefault(WRAPPERS.sub(".", name), tensor)
        else:
            key = match["name"] + (".bias" if match["leaf"] == "bias" else "")
            layer = WRAPPERS.sub(".", f"{match['layer']}.").removesuffix(".")
            known = layers.setdefault(layer, {}).setdefault(key, tensor)
        if known is not tensor:
            raise RunError(
                f"{folder}: {full_name!r} and {known.name!r} mean the same tensor - save the "
                "adapter again"
            )
    return layers, replaced, shared
