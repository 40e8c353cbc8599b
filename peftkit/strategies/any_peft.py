"""Any method of PEFT by its name, with PEFT's own settings."""

import ast
import copy
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import token_deltas
from peftkit.errors import Fault, RecipeError, RunError, nearest
from peftkit.models.architectures import head_names, linear_layers
from peftkit.strategies.base import PeftStrategy, saved_heads, strategy_for, train_head, trainable

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task

MANAGED_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
"""Settings of PEFT's configurations that peftkit or PEFT sets."""
READS_WRONG_TOKEN = "makes the head read a virtual token or padding"
REPLACED = {
    "adalora": ("prunes nothing", "adalora"),
    "p_tuning": (READS_WRONG_TOKEN, "p_tuning"),
    "prefix_tuning": ("is lost in checkpointed layers and shifts positions", "prefix"),
    "prompt_tuning": (READS_WRONG_TOKEN, "prompt"),
}
"""Methods that are wrong in PEFT 0.21, why, and the strategies to use instead."""
HEAD_FILE = "head.safetensors"
"""The file of a head that PEFT does not save."""


class AnyPeft(PeftStrategy):
    """Any method that PEFT registers, as PEFT implements it."""

    kind: Literal["peft"] = "peft"
    method: str
    """The method's name in PEFT, in lower case ('fourierft')."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of PEFT's configuration class; `target_modules` is by default all linear layers of
    all blocks."""

    default_lr: ClassVar[float] = 1e-3
    source: ClassVar[str] = "https://huggingface.co/docs/peft"
    packs: ClassVar[bool] = False
    peft_types: ClassVar[tuple[str, ...]] = ("LN_TUNING", "TRAINABLE_TOKENS")
    layer_tensors: ClassVar[tuple[str, ...]] = ("trainable_tokens_delta",)

    @field_validator("method")
    @classmethod
    def _peft_has_the_method(cls, method: str) -> str:
        if method not in methods():
            raise ValueError(f"PEFT has no method {method!r} - {nearest(method, methods())}")
        if method in REPLACED:
            why, instead = REPLACED[method]
            raise ValueError(f"PEFT's {method} {why} by itself - use strategy={instead}")
        return method

    @field_validator("config")
    @classmethod
    def _the_method_has_the_settings(
        cls, config: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        if "method" not in info.data:  # is a fault already
            return config
        known = settings_of(info.data["method"])
        faults = [
            f"{key!r} is set by peftkit, not here - drop it"
            if key in MANAGED_SETTINGS
            else f"PEFT's {info.data['method']} has no setting {key!r} - {nearest(key, known)}"
            for key in config
            if key not in known
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return config

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """Whether a strategy defines the method's weight deltas."""
        return strategy_for(self.method.upper()) is not None

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """The rows that trainable tokens replace."""
        return {"weight": token_deltas(layer)}

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """What these methods train replaces tensors of the base."""
        return f"{config['peft_type']} replaces weights, which cannot be added"

    @property
    def loads_with(self) -> Literal["peftkit", "peft"]:  # type: ignore[override]
        """peft, unless the head is in a file of its own because PEFT does not save it."""
        return "peft" if self._saves_heads else "peftkit"

    @property
    def _saves_heads(self) -> bool:
        return "modules_to_save" in all_settings_of(self.method)

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """PEFT's configuration class of the method with the settings given."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

        known, settings = settings_of(self.method), dict(self.config)
        if "target_modules" in known and "feedforward_modules" not in known:  # one needs both
            settings.setdefault("target_modules", linear_layers(model))
        if self._saves_heads:
            settings["modules_to_save"] = saved_heads(model, task)
        made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[self.method.upper()]]
        return made(task_type=task.peft_type_of(model), **settings)

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel` around `model`, with its head trainable."""
        is_meta = model.device.type == "meta"
        with self._recipe_errors():
            adapted = self._on_meta(model, task) if is_meta else super().adapt(model, task)
        train_head(adapted.get_base_model(), task)  # type: ignore[operator]
        return adapted

    def _on_meta(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """`adapt` on the meta device; with random weights for a method that reads them."""
        import torch

        twin = copy.deepcopy(model)
        try:
            return super().adapt(model, task)
        except (NotImplementedError, RuntimeError):  # raised by torch for tensors without data
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                twin.to_empty(device="cpu")
                for tensor in (t for t in twin.state_dict().values() if t.is_floating_point()):
                    tensor.normal_(std=0.02)
                return super().adapt(twin, task).to("meta")

    def prepare(self, model: "nn.Module", batches: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Try a forward and a backward pass, so that a method that needs other inputs fails before
        the run."""
        import torch

        with self._recipe_errors():
            outputs = model(**next(batches())).to_tuple()
            torch.stack([each.sum() for each in outputs if torch.is_tensor(each)]).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder, with a file for the head if PEFT does not save it."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        super().save(model, folder)
        held = {tensor.data_ptr() for tensor in get_peft_model_state_dict(model).values()}
        base: Any = model.get_base_model()  # type: ignore[operator]
        in_head = {id(p) for n in head_names(base) for p in base.get_submodule(n).parameters()}
        left = {
            name: p.detach().contiguous()
            for name, p in trainable(model).items()
            if id(p) in in_head and p.data_ptr() not in held
        }
        if left:
            save_file(left, folder / HEAD_FILE, metadata={"format": "pt"})

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder, with its head, on a new base."""
        from safetensors.torch import load_file

        with self._recipe_errors():
            adapted = super().load(model, folder, task)
        if (folder / HEAD_FILE).is_file():
            load_parameters(adapted, load_file(folder / HEAD_FILE))
        return adapted

    @contextmanager
    def _recipe_errors(self) -> Iterator[None]:
        """Raise errors of PEFT as `RecipeError`."""
        import torch

        try:
            yield
        except (RecipeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            what = (
                f"PEFT's {self.method} cannot train this model ({one_line(error)}) - fix "
                "strategy.config, or use strategy=lora"
            )
            raise RecipeError(
                "the strategy does not fit the model:", [Fault("strategy.method", what)]
            ) from error


def one_line(error: Exception) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def load_parameters(model: "nn.Module", tensors: dict[str, Any]) -> None:
    """Copy saved `tensors` into the parameters with the same names."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


@cache
def methods() -> dict[str, str]:
    """PEFT's methods, each with the name of its configuration class, without importing PEFT."""
    found = {}
    for path in sorted(peft_folder().glob("tuners/*/config.py")):
        match = re.search(r"self\.peft_type = PeftType\.(\w+)", path.read_text(encoding="utf-8"))
        if match:
            found[match[1].lower()] = class_with_peft_type(path)
    return found


def class_with_peft_type(path: Path) -> str:
    """The name of the class in a file that sets its `peft_type`."""
    text = path.read_text(encoding="utf-8")
    before = text[: text.index("self.peft_type = PeftType.")]
    return str(re.findall(r"^class (\w+)\(", before, re.MULTILINE)[-1])


def settings_of(method: str) -> list[str]:
    """The settings of a method that a recipe may set, in PEFT's order."""
    return [name for name in all_settings_of(method) if name not in MANAGED_SETTINGS]


@cache
def all_settings_of(method: str) -> tuple[str, ...]:
    """The fields of a method's configuration class and of its base classes."""
    known, found = classes(), list[str]()
    waiting = [methods()[method]]
    while waiting:
        node = known.get(waiting.pop())
        if node is None:
            continue
        waiting += [base.id for base in node.bases if isinstance(base, ast.Name)]
        fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
        found += [each.id for each in fields if isinstance(each, ast.Name)]
    return tuple(dict.fromkeys(found))


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The classes in the files of PEFT that declare configurations, by name."""
    folder = peft_folder()
    files = [folder / "config.py", *folder.glob("tuners/*_utils.py")]
    return {
        node.name: node
        for path in [*files, *folder.glob("tuners/*/config.py")]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def peft_folder() -> Path:
    """The folder that PEFT is installed in."""
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        raise RunError("PEFT is not installed - pip install peft")
    return Path(spec.origin).parent
