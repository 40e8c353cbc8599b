"""Adapters: what an artifact of ours, or a PEFT folder, holds, and what each tensor is for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import RunError
from peftkit.merging.checkpoint.tensors import Stored, read_header
from peftkit.merging.mixing import Mix
from peftkit.records.artifact import manifest_path, read_manifest, refuse_pickles
from peftkit.records.run_dir import RunDir
from peftkit.strategies.base import Strategy
from peftkit.tasks.base import Task

if TYPE_CHECKING:
    from peftkit.config.recipe import Recipe

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
PARTS = (
    "lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "oft_R", "boft_R", "boft_s", "ia3_l", "vera_lambda_b", "vera_lambda_d",
    "trainable_tokens_delta",
)  # fmt: skip
"""What PEFT 0.21 calls the parts of an adapter, behind the name of the layer."""
PART = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(PARTS)})(\.default)?(\.(?P<leaf>\w+))?")
WRAPPERS = re.compile(
    r"\.(base_layer|token_adapter|ln_tuning_layers(\.default)?|modules_to_save(\.default)?)\."
)
"""What PEFT puts into the names of the base's tensors and layers."""
KINDS = (
    "LORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "LN_TUNING",
    "TRAINABLE_TOKENS",
)  # fmt: skip
"""PEFT's methods that can be folded here."""
UNFOLDABLE = {
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "it chooses among adapters for each token",
    "use_qalora": "it pools what enters the layer",
    "use_bdlora": "its matrices are blocks on several devices",
    "kasa_config": "it changes the base's own singular values",
    "layer_replication": "it runs layers of the base several times",
    "target_parameters": "it acts on parameters that are no layer's weight",
    "megatron_config": "its layers are Megatron's",
}
"""Settings of PEFT's LoRA whose outcome is no low-rank difference, and why."""
STARTS = ("pissa", "olora")
"""Initializations that take something from the base, which can be found again."""
LOST_STARTS = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Initializations that change the base by chance, or by what the folder does not hold."""


@dataclass(frozen=True)
class Adapter:
    """What was trained, before anything of it is read but headers."""

    folder: Path
    kind: str
    """PEFT's method, or the strategy."""
    config: Mapping[str, Any]
    """PEFT's configuration; empty for what is no adapter of PEFT's."""
    modules: Mapping[str, Mapping[str, Stored]]
    """For each layer its parts, by PEFT's names without the adapter's."""
    replaced: Mapping[str, Stored]
    """Tensors that take the place of the model's, by the model's names."""
    shared: Mapping[str, Stored]
    """Parts that belong to no layer alone."""
    recipe: "Recipe | None" = None
    """The run's, where it is one of ours."""
    run: RunDir | None = None
    sealed: Mapping[str, Any] = field(default_factory=dict)
    """What the artifact's seal says."""
    members: "tuple[Adapter, ...]" = ()
    """Where it stands for several: each; `modules` are then those of all, the rest is of the one
    whose head is taken."""
    mix: Mix | None = None
    """How the members become one."""

    @property
    def single(self) -> "tuple[Adapter, ...]":
        """The members, or itself alone."""
        return self.members or (self,)

    @property
    def task(self) -> Task | None:
        """The task of one of our artifacts, with what the run learned beside the weights."""
        said = self.sealed.get("task")
        if said is None:
            return None
        return Task.parse(dict(said), "task").carrying(self.sealed.get("tuned", {}))

    @property
    def trains_head(self) -> bool:
        """Whether it brings a head that the base may not have: an artifact of ours does where its
        task puts one on the model, which a language model's does not."""
        if (task := self.task) is not None:
            return task.trains_head
        return self.config.get("task_type") in HEADS


HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""PEFT's tasks whose models get a fresh head, which is trained beside the adapter."""


def open_adapter(path: Path) -> Adapter:
    """The adapter at `path`: a run, its artifact, or a plain PEFT folder.

    Raises `RunError` where it is none, is pickled, damaged or cannot be folded.
    """
    if (path / "run.json").is_file():
        return open_artifact(RunDir.open(path).artifact, RunDir(path))
    if manifest_path(path).is_file():
        run = RunDir(path.parent) if (path.parent / "run.json").is_file() else None
        return open_artifact(path, run)
    return open_peft(path)


def open_artifact(folder: Path, run: RunDir | None) -> Adapter:
    """An artifact of ours."""
    said = read_manifest(folder)
    recipe = run.recipe if run is not None else None
    strategy = recipe.strategy if recipe else Strategy.parse(dict(said["strategy"]), "strategy")
    where = run.path if run is not None else folder
    if not strategy.foldable:
        raise RunError(
            f"{where}: 'strategy: {strategy.kind}' cannot be folded into the base's weights: it "
            "adds layers or tokens that the model's class does not have - make a folder that "
            f"serves it as it is: peftkit export {where} --to DIR"
        )
    task = Task.parse(dict(said["task"]), "task")
    if task.markers():
        raise RunError(
            f"{where}: 'task: {task.kind}' adds markers to the vocabulary and reads the model at "
            "them, which no class of transformers does: a merged checkpoint would say something "
            f"else - make a folder that serves it as it is: peftkit export {where} --to DIR"
        )
    return read_artifact(folder, run)


def read_artifact(folder: Path, run: RunDir | None, native: bool = True) -> Adapter:
    """An artifact of ours, also of what cannot be folded; `native`: PEFT's part of it can be."""
    said = read_manifest(folder)
    recipe = run.recipe if run is not None else None
    strategy = recipe.strategy if recipe else Strategy.parse(dict(said["strategy"]), "strategy")
    config = read_config(folder) if native and (folder / PEFT_CONFIG).is_file() else {}
    if config:
        refuse_variants(folder, config)
    tensors: dict[str, Stored] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(file)
    parts = sorted_out(folder, tensors)
    return Adapter(
        folder, str(config.get("peft_type", strategy.kind)), config, *parts, recipe, run, said
    )


def open_peft(folder: Path) -> Adapter:
    """A folder that PEFT wrote."""
    refuse_pickles(folder)
    absent = [name for name in (PEFT_CONFIG, PEFT_TENSORS) if not (folder / name).is_file()]
    if absent:
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise RunError(
            f"{folder}: is neither a run, an artifact nor a PEFT folder: {' and '.join(absent)} "
            f"missing (there are {', '.join(there[:10]) or 'no files'}) - name one that is"
        )
    config = read_config(folder)
    refuse_variants(folder, config)
    return Adapter(
        folder,
        str(config["peft_type"]),
        config,
        *sorted_out(folder, read_header(folder / PEFT_TENSORS)),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration in `folder`."""
    path = folder / PEFT_CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}) - take it from a copy") from None
    if not isinstance(said, dict):
        raise RunError(f"{path}: is no mapping - take it from a copy")
    return said


def refuse_variants(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse methods that have no fold here, and what only looks like a low-rank difference."""
    kind = str(config.get("peft_type", ""))
    if kind not in KINDS:
        raise RunError(
            f"{folder}: PEFT's {kind or 'unnamed method'} cannot be folded here - "
            f"{', '.join(KINDS)} can; load it with PEFT beside its base"
        )
    for name, why in UNFOLDABLE.items():
        if config.get(name) and config.get("peft_type") == "LORA":
            raise RunError(
                f"{folder}: was trained with {name}={config[name]!r}, which cannot be folded: "
                f"{why} - load it with PEFT beside its base"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(LOST_STARTS):
        raise RunError(
            f"{folder}: was initialized by {start!r}, which changed the base in a way that the "
            "folder does not tell - save it with PEFT's path_initial_model_for_weight_conversion, "
            "which makes it an ordinary LoRA"
        )


Sorted = tuple[dict[str, dict[str, Stored]], dict[str, Stored], dict[str, Stored]]


def sorted_out(folder: Path, tensors: Mapping[str, Stored]) -> Sorted:
    """An adapter's tensors by what they are: parts of layers, replacements, shared parts."""
    modules: dict[str, dict[str, Stored]] = {}
    replaced: dict[str, Stored] = {}
    shared: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name.startswith("base_model.vera_"):
            shared[name.removeprefix("base_model.").removesuffix(".default")] = tensor
            continue
        plain = name.removeprefix("base_model.model.")
        found = PART.fullmatch(plain)
        if found is None:
            twin = replaced.setdefault(WRAPPERS.sub(".", plain), tensor)
        else:
            leaf = "bias" if found["leaf"] == "bias" else ""
            key = found["part"] + (f".{leaf}" if leaf else "")
            module = WRAPPERS.sub(".", f"{found['module']}.").removesuffix(".")
            twin = modules.setdefault(module, {}).setdefault(key, tensor)
        if twin is not tensor:
            raise RunError(
                f"{folder}: {name!r} and {twin.name!r} mean the same tensor - save the adapter "
                "again"
            )
    return modules, replaced, shared
