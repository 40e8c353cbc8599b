"""Strategies: which weights move. Declaring a class here makes `strategy=<kind>` work."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from typing_extensions import Self

from peftkit.deltas.base import AdapterLayer, Deltas, RandomProjection
from peftkit.errors import Fault
from peftkit.models.architectures import constant_parameters, head_names, parameter_depths
from peftkit.registry import Component
from peftkit.storage.safetensors_files import StoredTensor

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from peftkit.tasks.base import Task


@dataclass(frozen=True)
class LRMultiplier:
    """How fast one parameter learns."""

    factor: float = 1.0
    """Its share of the learning rate."""
    start: float = 0.0
    """The share of the steps that pass before it moves."""


class ExportedModule(NamedTuple):
    """A module that an exported folder attaches to a plain transformers model."""

    kind: str
    """Names the file of code in the folder: attach_KIND.py."""
    code: ModuleType | Callable[..., None]
    """A function `attach(model, settings, tensors)`, or a module with one. Its source is copied to
    the folder: it imports torch and transformers only, a function within its body."""
    settings: Mapping[str, Any]
    """Values that JSON can hold."""
    tensors: "Mapping[str, Tensor]"
    """The trained tensors by unique names; `attach` removes those that it uses from its dict."""


class TrainingHook(Protocol):
    """What a strategy does in training besides the optimizer's steps."""

    def penalty(self) -> "Tensor":
        """Added to the loss, once an optimizer step: a scalar in fp32."""

    def after_step(self) -> None:
        """Called after the optimizer has moved the weights, with their gradients still there."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""


class Strategy(Component):
    """Which weights of a model are trained, how they are attached, saved and folded back.

    What is a class variable here may be a property where it depends on the settings.
    """

    family = "strategy"
    package = "peftkit.strategies"

    default_lr: ClassVar[float]
    """The learning rate that `training.lr: auto` takes."""
    source: ClassVar[str]
    """The paper the strategy comes from."""
    trains_base: ClassVar[bool] = False
    """Whether all of the base moves (then it cannot be quantized, and keeps its dropout)."""
    mergeable: ClassVar[bool] = True
    """Whether a merge gives an ordinary checkpoint of the model's class."""
    layer_tensors: ClassVar[tuple[str, ...]] = ()
    """The names of the artifact's tensors that `weight_deltas` takes, without the layer's name
    ('lora_A'). All other tensors replace those of the base."""
    shared_tensors: ClassVar[tuple[str, ...]] = ()
    """The names of the artifact's tensors that all layers share."""
    packs: ClassVar[bool] = True
    """Whether several sequences may share a row: each token is treated alike, and none is added."""
    num_prompt_tokens: ClassVar[int] = 0
    """Virtual tokens before each sequence, which take positions as its own tokens do."""
    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "peftkit"
    """What can load the artifact."""
    saves_start: ClassVar[bool] = False
    """Whether the artifact also holds the adapter's initial values."""
    trained_file: ClassVar[str] = "trained.safetensors"
    """What the artifact's file of tensors is called."""

    @classmethod
    def parse(cls, value: object, path: str) -> Self:
        """A strategy from its name or mapping; a list of them is a combination."""
        if isinstance(value, list):
            return super().parse({"kind": "combination", "parts": value}, path)
        return super().parse(value, path)

    def components(self) -> "list[Strategy]":
        """The strategies that it combines, or itself alone."""
        return [self]

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """`model` with this strategy attached: exactly what should train has `requires_grad`.

        Raises `RecipeError` where the strategy's settings do not fit the model.
        """
        raise NotImplementedError

    def check_quantization(self, quantized: str | None) -> str | None:
        """Why the strategy cannot run on a base stored in `quantized` ('4bit'); None if it can."""
        if quantized and self.trains_base:
            return (
                f"'strategy: {self.kind}' trains weights of the base, but 'quantize: {quantized}' "
                "freezes them - use strategy=lora or quantize=none"
            )
        return None

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """Why the strategy cannot run on a model of such a `config`, before any is loaded."""
        return []

    def prepare(self, model: "nn.Module", batches: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Initialize the adapted `model` from batches of the train split (inputs, no labels).

        Called once, before the first step, also when a run resumes.
        """

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """The trainable parameters, by name, that do not learn at the common rate."""
        return {}

    def training_hook(self, model: "nn.Module", steps: int) -> TrainingHook | None:
        """The hook of a training of `steps` steps, if the strategy has one."""
        return None

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """What a merge changes in the tensors of `layer`, by their names within the layer.

        A merge raises an error for tensors of the adapter that no delta uses.
        """
        return {}

    @classmethod
    def share_tensors(
        cls, layers: Sequence[AdapterLayer], saved: Mapping[str, StoredTensor]
    ) -> Mapping[str, StoredTensor | RandomProjection]:
        """The tensors that all `layers` share: those that are `saved`, or generated ones."""
        return saved

    @classmethod
    def check_merge(cls, config: Mapping[str, Any]) -> str | None:
        """Why an adapter with this `AdapterLayer.config` cannot be merged; None if it can."""
        return None

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """Why such an adapter cannot be added to others in one merge; None if it can."""
        return None

    def exported_modules(self, model: "nn.Module") -> "list[ExportedModule]":
        """The modules that an exported folder attaches to the base; `model` is the trained one.

        What a merge changes is not among them. Raises `RunError` if the strategy cannot be merged
        and does not define them.
        """
        from peftkit.errors import RunError

        if not self.mergeable:
            raise RunError(
                f"'strategy: {self.kind}' cannot be exported: its class does not define "
                "exported_modules - use peftkit predict with the run"
            )
        return []

    def save(self, model: "nn.Module", folder: Path) -> None:
        """Write what was trained, and nothing else, to `folder` as safetensors."""
        from safetensors.torch import save_file

        trained = {n: p.detach().contiguous() for n, p in trainable(model).items()}
        save_file(trained, folder / self.trained_file, metadata={"format": "pt"})

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """A new base `model` with the artifact in `folder` loaded, ready to predict."""
        from safetensors.torch import load_file

        adapted = self.adapt(model, task)
        restore(adapted, load_file(folder / self.trained_file))
        return adapted


class PeftStrategy(Strategy):
    """A strategy that PEFT implements; a subclass gives the configuration."""

    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "peft"
    peft_types: ClassVar[tuple[str, ...]] = ()
    """PEFT's names of the methods whose adapters `weight_deltas` merges ('LORA'), also of adapters
    that were trained without peftkit."""
    autocast_adapter_dtype: ClassVar[bool] = False
    """Whether trained weights are stored in fp32, also on a base in bf16.

    Otherwise they are stored in the base's type, and the optimizer holds fp32 master weights.
    """

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """PEFT's configuration of the method for this model.

        Raises `RecipeError` where the strategy's settings do not fit the model.
        """
        raise NotImplementedError

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel` around `model`; the head is trained as well."""
        from peft import get_peft_model

        with quiet_peft():
            return get_peft_model(
                model,
                self.configuration(model, task),
                autocast_adapter_dtype=self.autocast_adapter_dtype,
            )

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder: `peft.PeftModel.from_pretrained` loads it."""
        # no strategy trains embeddings, and those of a task's markers are made again
        model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a new base."""
        from peft import PeftModel

        with quiet_peft():
            return PeftModel.from_pretrained(
                model, str(folder), autocast_adapter_dtype=self.autocast_adapter_dtype
            )


def strategy_for(peft_type: str) -> type[PeftStrategy] | None:
    """The strategy that merges adapters of this PEFT method; None if there is none."""
    for strategy in Strategy.kinds().values():
        # a subclass of another strategy inherits its methods, and does not take them over
        if peft_type in vars(strategy).get("peft_types", ()):
            assert issubclass(strategy, PeftStrategy)
            return strategy
    return None


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without one warning: peft 0.21 reads a property that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def unwrap_heads(model: Any) -> None:
    """Replace each head by its trained copy: most of PEFT 0.21's methods can do so only if a head
    is one layer, which RoBERTa's and T5's are not."""
    base = model.get_base_model()
    for name in head_names(base):
        copies = getattr(base.get_submodule(name), "modules_to_save", None)
        if copies is not None:
            setattr(base, name, copies["default"])


def saved_heads(model: "PreTrainedModel", task: "Task") -> list[str] | None:
    """PEFT's `modules_to_save`: the head, if the task has a new one."""
    return head_names(model) if task.trains_head else None


def train_all(model: "PreTrainedModel") -> "nn.Module":
    """`model` with every weight trainable, but for the constants that some keep among them."""
    model.requires_grad_(True)
    for name in constant_parameters(model):
        model.get_parameter(name).requires_grad_(False)
    return model


def train_head(model: "PreTrainedModel", task: "Task") -> None:
    """Make the head trainable, where the task has a new one; of one that PEFT holds, its copy."""
    for head in head_names(model) if task.trains_head else []:
        for name, parameter in model.get_submodule(head).named_parameters():
            parameter.requires_grad_("original_module." not in name)


def trainable(model: "nn.Module") -> dict[str, "nn.Parameter"]:
    """The parameters that train, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def slower_below(model: "nn.Module", decay: float) -> dict[str, LRMultiplier]:
    """Learning-rate multipliers: a block learns at `decay` times the rate of the next block.

    The head has the common one, the embeddings the slowest (ULMFiT, section 3.2; ELECTRA's too).
    """
    if decay == 1:
        return {}
    depths = parameter_depths(model)
    return {name: LRMultiplier(decay ** depths[name]) for name in trainable(model) if depths[name]}


def module_tensors(model: "nn.Module", *names: str) -> dict[str, "Tensor"]:
    """The tensors of submodules, by their names in `model`."""
    return {
        f"{name}.{key}": tensor
        for name in names
        for key, tensor in model.get_submodule(name).state_dict().items()
    }


def bottleneck_module(model: "nn.Module", settings: Mapping[str, Any]) -> ExportedModule:
    """A bottleneck for an exported folder, from the settings of its `attach`."""
    from peftkit.models.exported import bottleneck

    names = [settings[key] for key in ("name", "rule") if key in settings]
    tensors = module_tensors(model, *names)
    return ExportedModule("bottleneck", bottleneck, settings, tensors)


def restore(model: "nn.Module", tensors: Mapping[str, "Tensor"]) -> None:
    """Copy saved `tensors` into the trainable parameters with the same names.

    Raises `RunError` if the names are not the same.
    """
    import torch

    from peftkit.errors import RunError

    parameters = trainable(model)
    if parameters.keys() != tensors.keys():
        different = sorted(parameters.keys() ^ tensors.keys())
        raise RunError(
            f"the saved tensors are not those that train: {', '.join(different[:5])}"
            f"{' ...' if len(different) > 5 else ''} - they belong to another recipe or version"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
