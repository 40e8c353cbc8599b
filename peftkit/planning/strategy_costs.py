"""The costs of each strategy on one model: trainable weights and artifact size."""

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
    "with default settings, and a new head for two labels if the task has one; artifact: the "
    "bytes of the saved tensors in the dtype of a run on this machine, the head's in fp32"
)
WRAPPED = "base_model.model."
"""PEFT's prefix of the base model's names."""
VIRTUAL = "prompt_embeddings"
"""PEFT's name of the saved virtual tokens, which are in fp32."""
EMPTY_FILE_BYTES = 40
"""Of a safetensors file without tensors."""
TENSOR_ENTRY_BYTES = 60
"""Of the dtype, shape and offsets of a tensor in a safetensors header, approximately; without its
name."""


@dataclass(frozen=True)
class StrategyCost:
    """The costs of a strategy with default settings on one model, or why it is incompatible."""

    strategy: str
    trainable: int | None = None
    share: float | None = None
    """Of all weights, those added by the strategy included."""
    artifact_bytes: int | None = None
    lr: float | None = None
    """The learning rate of `training.lr: auto`."""
    reason: str | None = None


def strategy_costs(model: str) -> list[StrategyCost]:
    """The costs of every strategy and alias, by name, on `model`.

    Raises `DataError` if the model is not found, `RecipeError` if no task is compatible with it.
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
    """The task to count with: text classification, or the first that the model has a head for.

    Raises `RecipeError` if there is none.
    """
    kinds = Task.kinds()
    for kind in sorted(kinds, key=lambda kind: (kind != "text_classification", kind)):
        try:
            task = Task.parse(kind, "task")
        except RecipeError:  # it has required settings
            continue
        if type(config) in task.auto_class(config)._model_mapping:
            return task
    what = (
        f"{model!r}: the architecture {config.model_type!r} has a head for none of the tasks "
        f"({', '.join(kinds)}) in transformers - choose another model"
    )
    raise RecipeError("no strategy can be counted:", [Fault("--for", what)])


def meta_base(config: "PretrainedConfig", task: Task) -> "PreTrainedModel":
    """The model with a new head on the meta device, in the dtypes of a run on this machine."""
    import torch

    from peftkit.loading.model import DTYPES, keep_head_in_fp32
    from peftkit.runtime.distributed import resolve_precision

    dtype = DTYPES[resolve_precision("auto")]
    with torch.device("meta"):
        base: PreTrainedModel = task.auto_class(config).from_config(config, dtype=dtype)
    keep_head_in_fp32(base, task)
    return base


def compute_cost(name: str, base: "PreTrainedModel", task: Task) -> StrategyCost:
    """The costs of the strategy `name` on a copy of `base`, or why it is incompatible."""
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
        return StrategyCost(name, reason=error_summary(error))
    counted = count_parameters(module, count_base_parameters(base))
    size = artifact_bytes(strategy, module, head_names(base), base.dtype.itemsize)
    return StrategyCost(name, counted.trainable, counted.share, size, strategy.default_lr)


def error_summary(error: PeftkitError) -> str:
    """An error in one line, without its heading."""
    faults = [f"{fault.where}: {fault.what}" for fault in error.faults]
    return "; ".join(faults) or error.message


def artifact_bytes(
    strategy: Strategy, module: "nn.Module", heads: Sequence[str], itemsize: int
) -> int:
    """The size in bytes of the file that the strategy would save of `module`.

    `itemsize` is the bytes per weight of the base; those of the `heads` are in fp32.
    """
    in_heads = tuple(f"{WRAPPED}{head}." for head in heads)
    size = EMPTY_FILE_BYTES
    for name, tensor in saved_tensors(strategy, module).items():
        entry = TENSOR_ENTRY_BYTES + len(name)
        if not isinstance(strategy, PeftStrategy) or name == VIRTUAL or name.startswith(in_heads):
            size += entry + tensor.numel() * tensor.element_size()
        else:  # on the meta device PEFT 0.21 keeps its weights in fp32
            own = 4 if strategy.autocast_adapter_dtype else itemsize
            size += entry + tensor.numel() * own * (2 if strategy.saves_start else 1)
    return size


def saved_tensors(strategy: Strategy, module: "nn.Module") -> "dict[str, Tensor]":
    """The tensors that the strategy saves, by name: the trainable ones, or those of PEFT (which may
    be more)."""
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
    """Costs as rows of a table, with a reason instead of numbers if incompatible."""
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
