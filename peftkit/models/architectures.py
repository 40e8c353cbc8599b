"""Blocks, heads and linear layers of each architecture, by name."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftkit.errors import Fault, RecipeError, nearest
from peftkit.models.layouts import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


LINEAR_CLASSES = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")


def first_position(config: "PretrainedConfig") -> int:
    """The position id of a sequence's first token."""
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None or not architecture.counts_from_padding:
        return 0
    return int(config.pad_token_id or 0) + 1


def unwrap_model(module: Any) -> "PreTrainedModel":
    """The transformers model, without a PEFT wrapper."""
    inner: PreTrainedModel = (
        module.get_base_model() if hasattr(module, "get_base_model") else module
    )
    return inner


def base_of(model: "PreTrainedModel") -> "nn.Module":
    """The model without its head."""
    return getattr(model, model.base_model_prefix, model)


def head_names(model: "PreTrainedModel") -> list[str]:
    """The names of the top-level modules with parameters outside the base model: the head."""
    base = base_of(model)
    return [
        name
        for name, child in model.named_children()
        if any(True for _ in child.parameters())
        and not (is_of_base(child) if base is model else child is base)
    ]


def checkpoint_key_mapping(auto_class: Any, config: "PretrainedConfig") -> dict[str, str] | None:
    """A mapping of names in a checkpoint to those in the class that `auto_class` selects, if they
    differ.

    transformers 5.23 uses another name for the base of LlamaForQuestionAnswering than for that of
    every other Llama, and would leave it random when it loads the checkpoint of a language model.
    """
    from transformers import AutoModel

    usual, own = (
        getattr(each._model_mapping[type(config)], "base_model_prefix", "")
        for each in (AutoModel, auto_class)
    )
    return {rf"^{usual}\.": f"{own}."} if usual and own and usual != own else None


def is_of_base(child: "nn.Module") -> bool:
    """Whether a top-level module is part of the base in a model without a separate one
    (T5ForQuestionAnswering): embeddings or blocks."""
    from torch.nn import Embedding, ModuleList

    return isinstance(child, Embedding) or any(isinstance(m, ModuleList) for m in child.modules())


def blocks_of(model: "nn.Module") -> list[tuple[str, "nn.Module"]]:
    """The transformer blocks in order, each with its full name: those of an encoder before a
    decoder's.

    A block that the model runs several times (ALBERT's) is listed once. Raises `RecipeError` if
    there is no list of blocks.
    """
    from torch.nn import ModuleList

    lists = {n: m for n, m in model.named_modules() if isinstance(m, ModuleList) and len(m)}
    if not lists:
        raise RecipeError(f"{model_type_of(model)}: no list of transformer blocks in this model")
    # a list inside a block may be longer than that of the blocks: its experts
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    encoders, decoders = (longest(outermost, part) for part in ("encoder", "decoder"))
    chosen = [encoders, decoders] if encoders and decoders else [longest(outermost)]
    named = [(f"{n}.{i}", block) for n in chosen for i, block in enumerate(outermost[n])]
    entry = ARCHITECTURES.get(model_type_of(model))
    if entry is None or not entry.group:
        return named
    groups = [(f"{n}.{entry.group}", group.get_submodule(entry.group)) for n, group in named]
    return [(f"{n}.{i}", block) for n, group in groups for i, block in group.named_children()]


def longest(lists: Mapping[str, "nn.Module"], part: str = "") -> str:
    """The name of the longest module list in `part` of the model; '' if there is none."""
    inside = {n: len(list(m.children())) for n, m in lists.items() if not part or in_part(n, part)}
    return max(inside, key=lambda name: inside[name], default="")


def in_part(name: str, part: str) -> bool:
    """Whether the module of this name is in `part` of the model ('encoder' or 'decoder')."""
    return part in name.split(".")


def model_type_of(model: "nn.Module") -> str:
    """The architecture's name in transformers; '' for a model without a configuration."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def layout_of(model: "nn.Module", wanted_by: str) -> list[tuple[str, "nn.Module", Architecture]]:
    """Each block with its full name and its `Architecture` (a decoder's may differ).

    Raises `RecipeError` for an unsupported architecture.
    """
    entry = architecture_of(model, wanted_by)
    if getattr(model.config, "is_gated_act", False) and entry.gated_input:
        entry = gated(entry)
    return [
        (name, block, entry.decoder if entry.decoder and in_part(name, "decoder") else entry)
        for name, block in blocks_of(model)
    ]


def gated(entry: Architecture) -> Architecture:
    """The entry for a model with gated feed-forward layers."""
    decoder = gated(entry.decoder) if entry.decoder else None
    return replace(entry, feed_forward_input=entry.gated_input, decoder=decoder)


def query_layers(model: "nn.Module", wanted_by: str) -> list[str]:
    """The full names of the query projections (fused with keys and values or not)."""
    return attention_layers(model, wanted_by, "query")


def key_layers(model: "nn.Module", wanted_by: str) -> list[str]:
    """The full names of the key projections."""
    return attention_layers(model, wanted_by, "key")


def value_layers(model: "nn.Module", wanted_by: str) -> list[str]:
    """The full names of the value projections."""
    return attention_layers(model, wanted_by, "value")


def attention_layers(model: "nn.Module", wanted_by: str, gives: str) -> list[str]:
    """The full names of the projections to 'query', 'key' or 'value'."""
    return [
        f"{name}.{module}.{getattr(entry, gives)}"
        for name, _, entry in layout_of(model, wanted_by)
        for module in entry.attention
    ]


def feed_forward_layers(model: "nn.Module", wanted_by: str) -> list[str]:
    """The full names of the last linear layers of the feed-forward parts, one per block."""
    return [f"{name}.{entry.feed_forward_output}" for name, _, entry in layout_of(model, wanted_by)]


def parameter_depths(model: "nn.Module") -> dict[str, int]:
    """The depth of every parameter by name: 0 for the head and all else above the last block, 1 for
    the last block, and so on; the embeddings are one deeper than the first block.

    What follows an encoder's blocks is as deep as its last one; adapters are as deep as their
    blocks.
    """
    from torch.nn import Embedding

    blocks = [f"{name}." for name, _ in blocks_of(model)]
    deepest = len(blocks) + 1
    tables = {n for n, m in model.named_modules() if isinstance(m, Embedding)}
    tables |= {n for n, _ in model.named_modules() if n.endswith(below_of(model))}
    found, depth = {}, deepest
    for name, _ in model.named_parameters():
        index = next((i for i, block in enumerate(blocks) if name.startswith(block)), None)
        if index is not None:
            depth = len(blocks) - index
        elif depth == 1:  # after the last block
            depth = 0
        outside = index is None and any(name.startswith(f"{table}.") for table in tables)
        found[name] = deepest if outside else depth
    return found


def below_of(model: "nn.Module") -> tuple[str, ...]:
    """The ends of the names of modules that are defined after the blocks and used below them."""
    entry = ARCHITECTURES.get(model_type_of(model))
    return tuple(f".{part}" for part in entry.below) if entry else ()


def constant_parameters(model: "nn.Module") -> list[str]:
    """The names of the parameters that the model's code keeps constant or never reads: the shared
    embeddings of a BART whose encoder and decoder have their own."""
    entry = ARCHITECTURES.get(model_type_of(model))
    ends = entry.fixed if entry else ()
    uses = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    return [
        name
        for name, parameter in model.named_parameters()
        if name.endswith(ends) or (is_shared(name) and uses[id(parameter)] == 1)
    ]


def is_shared(name: str) -> bool:
    """Whether a parameter has the name of the shared embeddings of encoder and decoder."""
    return name.split(".")[-2:] == ["shared", "weight"]


def runs_per_block(model: "nn.Module") -> int:
    """How often a forward pass runs each block: once, except for ALBERT's shared ones."""
    entry = ARCHITECTURES.get(model_type_of(model))
    if entry is None or not entry.group:
        return 1
    config: Any = model.config
    return int(config.num_hidden_layers) * int(config.inner_group_num) // len(blocks_of(model))


def linear_layers(model: "nn.Module") -> list[str]:
    """The full names of all linear layers inside the blocks: attention and feed-forward."""
    return [
        f"{block_name}.{name}"
        for block_name, block in blocks_of(model)
        for name in linear_modules(block)
    ]


def linear_modules(module: "nn.Module") -> list[str]:
    """The names of all linear layers inside `module`."""
    return [n for n, m in module.named_modules() if type(m).__name__ in LINEAR_CLASSES]


def find_target_layers(model: "nn.Module", targets: list[str] | str) -> list[str]:
    """The full names of the layers that match `targets`; 'auto' is every linear one in a block."""
    layers = linear_layers(model)
    return layers if isinstance(targets, str) else matching(targets, layers, "strategy.targets")


def matching(targets: list[str], names: list[str], setting: str) -> list[str]:
    """Those of `names` that equal, or end in, one of `targets`.

    Raises `RecipeError` for targets without a match.
    """
    found, faults = [], []
    for target in targets:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            tails = sorted({tail_of(name) for name in names})
            what = f"no layer of this model is named {target!r} - {nearest(target, tails)}"
            faults.append(Fault(setting, what + f" (possible: {', '.join(tails)})"))
        found.extend(hits)
    if faults:
        raise RecipeError("the strategy does not fit the model:", faults)
    return [name for name in names if name in set(found)]


def tail_of(name: str) -> str:
    """The part of a layer's name that is the same in each block: after the block's number."""
    steps = name.split(".")
    numbers = [index for index, step in enumerate(steps) if step.isdigit()]
    return ".".join(steps[numbers[-1] + 1 :]) if numbers else name


def architecture_of(model: "nn.Module", wanted_by: str) -> Architecture:
    """The `Architecture` of this model.

    Raises `RecipeError`, with the supported ones, if it is not among them.
    """
    model_type = model_type_of(model)
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(
            f"{wanted_by} does not support the architecture {model_type!r}, only {known} - "
            "use strategy=lora, or a model of these"
        )
    return ARCHITECTURES[model_type]


def check_no_missing_weights(model: str, missing: Collection[str]) -> None:
    """Raise `RecipeError` if a language model's files lack weights, such as its output layer: a
    strategy would train with random ones."""
    if missing:
        what = f"the files of {model!r} lack {', '.join(sorted(missing)[:3])}, without which it "
        fix = "cannot generate text - choose a checkpoint of a language model"
        raise RecipeError("the model does not suit the task:", [Fault("model", what + fix)])
