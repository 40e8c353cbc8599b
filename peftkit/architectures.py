"""Architectures: where blocks, heads and linear layers stand, so that strategies need not know."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.errors import Fault, RecipeError, nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """What must be known of one `model_type`; paths are relative to a block or the base model."""

    attention_output: str
    """The block's linear layer that ends attention, before the residual sum."""
    feed_forward_input: str
    """The block's linear layer that begins the feed-forward part."""
    feed_forward_output: str
    """The block's linear layer that ends it, before the residual sum."""
    reads: str
    """The token a sequence classifier reads: 'first' or 'last'."""
    encoder: str = ""
    """For those that read the first token: the part of the base model whose output they read."""
    counts_from_padding: bool = False
    """Whether position ids count on from the padding id, as RoBERTa's do."""


BERT = Architecture(
    "attention.output.dense", "intermediate.dense", "output.dense", "first", "encoder"
)
ROBERTA = Architecture(
    "attention.output.dense", "intermediate.dense", "output.dense", "first", "encoder", True
)
LLAMA = Architecture("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "last")

ARCHITECTURES = {
    "bert": BERT,
    "electra": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": Architecture("attention.out_lin", "ffn.lin1", "ffn.lin2", "first", "transformer"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gpt2": Architecture("attn.c_proj", "mlp.c_fc", "mlp.c_proj", "last"),
}
"""The architectures for which packed has been tested equal to padded; others are padded."""

LINEAR_CLASSES = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")


def first_position(config: "PretrainedConfig") -> int:
    """The position id of a sequence's first token."""
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None or not architecture.counts_from_padding:
        return 0
    return int(config.pad_token_id or 0) + 1


def base_of(model: "PreTrainedModel") -> "nn.Module":
    """The model without its head."""
    return getattr(model, model.base_model_prefix, model)


def head_names(model: "PreTrainedModel") -> list[str]:
    """The names of the top-level modules with weights that are not the base model: the new head."""
    base = base_of(model)
    return [
        name
        for name, child in model.named_children()
        if child is not base and any(True for _ in child.parameters())
    ]


def blocks_of(model: "PreTrainedModel") -> list[tuple[str, "nn.Module"]]:
    """The transformer blocks in order, each with its full name: the model's longest module list."""
    from torch.nn import ModuleList

    lists = {n: m for n, m in model.named_modules() if isinstance(m, ModuleList) and len(m)}
    if not lists:
        raise RecipeError(f"{model.config.model_type}: no list of transformer blocks in this model")
    # a block may hold a longer list than the model has blocks: its experts
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    name, blocks = max(outermost.items(), key=lambda found: len(found[1]))
    return [(f"{name}.{index}", block) for index, block in enumerate(blocks)]


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """The full names of all linear layers inside the blocks: attention and feed-forward."""
    return [
        f"{block_name}.{name}"
        for block_name, block in blocks_of(model)
        for name in linear_modules(block)
    ]


def linear_modules(module: "nn.Module") -> list[str]:
    """The names of all linear layers inside `module`."""
    return [n for n, m in module.named_modules() if type(m).__name__ in LINEAR_CLASSES]


def targets_in(model: "PreTrainedModel", targets: list[str] | str) -> list[str]:
    """The full names of the layers that `targets` mean; 'auto' is every linear one in a block."""
    layers = linear_layers(model)
    return layers if isinstance(targets, str) else matching(targets, layers, "strategy.targets")


def matching(targets: list[str], names: list[str], setting: str) -> list[str]:
    """Those of `names` that are, or end in, one of `targets`; a target without any is an error."""
    found, faults = [], []
    for target in targets:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            tails = sorted({tail_of(name) for name in names})
            what = f"no layer of this model is called {target!r} - {nearest(target, tails)}"
            faults.append(Fault(setting, what + f" (those that would match: {', '.join(tails)})"))
        found.extend(hits)
    if faults:
        raise RecipeError("the strategy does not fit the model:", faults)
    return [name for name in names if name in set(found)]


def tail_of(name: str) -> str:
    """What repeats from block to block: the part of a layer's name behind its block's number."""
    steps = name.split(".")
    numbers = [index for index, step in enumerate(steps) if step.isdigit()]
    return ".".join(steps[numbers[-1] + 1 :]) if numbers else name


def architecture_of(model: "PreTrainedModel", wanted_by: str) -> Architecture:
    """The entry for this model's architecture; an error that names those there are."""
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(
            f"{wanted_by} does not know the architecture {model_type!r} - it knows {known}; "
            "use strategy=lora, or a model of these"
        )
    return ARCHITECTURES[model_type]
