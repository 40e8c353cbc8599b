"""Offers: what each strategy would come to on one model, counted without its weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import Fault, PeftkitError, RecipeError
from peftkit.models.architectures import head_names
from peftkit.planning.plan import config_folder
from peftkit.strategies.base import PeftStrategy, Strategy, trainable
from peftkit.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

COUNTED = (
    "with its default settings, and a new head for two labels where the task has one; artifact: "
    "the bytes of the saved tensors as this machine holds weights at rest, the head's in fp32"
)
WRAPPED = "base_model.model."
"""What PEFT puts before the base model's names."""
VIRTUAL = "prompt_embeddings"
"""What PEFT calls the virtual tokens that it saves, which rest in fp32."""
A_FILE_S_OWN = 40
"""Bytes of a safetensors file without any tensor."""
A_TENSOR_S_ENTRY = 60
"""Bytes of a safetensors file for a tensor's type, shape and place, roughly; its name beside."""


@dataclass(frozen=True)
class StrategyCost:
    """A strategy with its default settings on one model: its numbers, or why it does not fit."""

    strategy: str
    trainable: int | None = None
    share: float | None = None
    """Of all weights, those that the strategy adds among them."""
    artifact_bytes: int | None = None
    lr: float | None = None
    """The learning rate that `training.lr: auto` takes."""
    reason: str | None = None


def strategy_costs(model: str) -> list[StrategyCost]:
    """Every strategy and alias, by name, on the model called `model`.

    Raises `DataError` where the model is nowhere, `RecipeError` where no task suits it.
    """
    from transformers import AutoConfig

    from peftkit.loading.model import quiet_transformers

    with quiet_transformers():
        config = AutoConfig.from_pretrained(config_folder(model), num_labels=2)
        task = task_for(config, model)
        base = meta_base(config, task)
        names = sorted({*Strategy.kinds(), *Strategy.all_aliases()})
        return [compute_cost(name, base, task) for name in names]


def task_for(config: "PretrainedConfig", model: str) -> Task:
    """The task that the model is counted with: classification, or the first that it has a head for.

    Raises `RecipeError` where there is none.
    """
    kinds = Task.kinds()
    for kind in sorted(kinds, key=lambda kind: (kind != "text_classification", kind)):
        try:
            task = Task.parse(kind, "task")
        except RecipeError:  # it needs settings, and there is no recipe to take them from
            continue
        if type(config) in task.auto_class(config)._model_mapping:
            return task
    what = (
        f"{model!r}: the architecture {config.model_type!r} has a head for none of the tasks "
        f"({', '.join(kinds)}) in transformers - choose another model"
    )
    raise RecipeError("no strategy can be counted:", [Fault("--for", what)])


def meta_base(config: "PretrainedConfig", task: Task) -> "PreTrainedModel":
    """The model with a new head on the meta device, in the types that a run here would hold."""
    import torch

    from peftkit.loading.model import DTYPES, keep_head_in_fp32
    from peftkit.runtime.distributed import resolve_precision

    dtype = DTYPES[resolve_precision("auto")]
    with torch.device("meta"):
        base: PreTrainedModel = task.auto_class(config).from_config(config, dtype=dtype)
    keep_head_in_fp32(base, task)
    return base


def compute_cost(name: str, base: "PreTrainedModel", task: Task) -> StrategyCost:
    """The strategy called `name` on a copy of `base`, or the reason why it does not fit."""
    import torch

    from peftkit.loading.model import count_base_parameters, count_parameters

    try:
        strategy = Strategy.parse(name, "strategy")
        if reason := strategy.check_quantization(None):
            return StrategyCost(name, reason=reason)
        if faults := strategy.incompatibilities(base.config, task):
            raise RecipeError("", faults)
        with torch.device("meta"):
            module = strategy.adapt(copy.deepcopy(base), task)
    except RecipeError as error:
        return StrategyCost(name, reason=reason_of(error))
    counted = count_parameters(module, count_base_parameters(base))
    size = artifact_bytes(strategy, module, head_names(base), base.dtype.itemsize)
    return StrategyCost(name, counted.trainable, counted.share, size, strategy.default_lr)


def reason_of(error: PeftkitError) -> str:
    """An error in one line, without its heading."""
    faults = [f"{fault.where}: {fault.what}" for fault in error.faults]
    return "; ".join(faults) or error.message


def artifact_bytes(
    strategy: Strategy, module: "nn.Module", heads: Sequence[str], resting: int
) -> int:
    """The size of the file of tensors that the strategy would save of `module`.

    `resting` is the bytes of a weight at rest; those of the `heads` are in fp32.
    """
    in_heads = tuple(f"{WRAPPED}{head}." for head in heads)
    size = A_FILE_S_OWN
    for name, tensor in saved_tensors(strategy, module).items():
        entry = A_TENSOR_S_ENTRY + len(name)
        if not isinstance(strategy, PeftStrategy) or name == VIRTUAL or name.startswith(in_heads):
            size += entry + tensor.numel() * tensor.element_size()
        else:  # on the meta device PEFT 0.21 leaves what it adds in fp32
            own = 4 if strategy.rests_in_fp32 else resting
            size += entry + tensor.numel() * own * (2 if strategy.saves_start else 1)
    return size


def saved_tensors(strategy: Strategy, module: "nn.Module") -> "dict[str, Tensor]":
    """What the strategy saves, by name: what trains, or what PEFT says (it may be more)."""
    import torch

    if not isinstance(strategy, PeftStrategy):
        return dict(trainable(module))
    from peft import get_peft_model_state_dict

    model: Any = module
    config = model.active_peft_config
    if not config.is_prompt_learning:
        return get_peft_model_state_dict(model, save_embedding_layers=False)  # type: ignore[no-any-return]
    # PEFT 0.21 computes the virtual tokens that it saves, which the meta device cannot
    tokens = len(model.prompt_tokens[model.active_adapter])
    copied = {n: p for n, p in trainable(module).items() if ".modules_to_save." in n}
    return {**copied, VIRTUAL: torch.empty(tokens, config.token_dim, device="meta")}


def cost_rows(found: list[StrategyCost]) -> list[dict[str, str]]:
    """Offers as rows of a table; a reason stands in the place of the numbers."""
    return [
        {
            "strategy": each.strategy,
            "trainable": "-" if each.trainable is None else f"{each.trainable:,}",
            "share": "-" if each.share is None else f"{each.share:.3%}",
            "artifact": "-" if each.artifact_bytes is None else f"{each.artifact_bytes:,} B",
            "lr": "-" if each.lr is None else f"{each.lr:g}",
            "does not fit": each.reason or "",
        }
        for each in found
    ]
