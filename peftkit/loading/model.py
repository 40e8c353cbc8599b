"""Load the model of a run: the base, quantized, with a head and a strategy."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError
from peftkit.hub.source import Source
from peftkit.hub.toy_models import TINY
from peftkit.loading.dropout import set_dropout
from peftkit.loading.heads import PretrainedHead, find_pretrained_head
from peftkit.loading.token_selection import attach_token_selection
from peftkit.models import packed_attention
from peftkit.models.added_tokens import add_marker_tokens, extend
from peftkit.models.architectures import (
    check_no_missing_weights,
    checkpoint_key_mapping,
    first_position,
    head_names,
    linear_layers,
    linear_modules,
)
from peftkit.models.layouts import ARCHITECTURES
from peftkit.models.parameters import size_of
from peftkit.models.quantization import guard
from peftkit.preprocessing.batching import Batcher
from peftkit.preprocessing.sequence_lengths import length_faults, room_for_questions
from peftkit.preprocessing.tokenizers import check_embedding_rows, embedding_rows, set_padding_token
from peftkit.records.record import ParameterCount
from peftkit.strategies.base import trainable
from peftkit.tasks.base import Task
from peftkit.text.tokenizer_files import open_tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train or predict, with its tokenizer and batcher."""

    module: nn.Module
    tokenizer: Any
    batcher: Batcher
    parameters: ParameterCount
    notes: tuple[str, ...]
    """For the record: how batches, head and tokenizer differ from the default."""


def load_model(
    recipe: Recipe,
    source: Source,
    tokenizer: Any,
    names: Sequence[str],
    precision: str,
    artifact: Path | None = None,
    bare: bool = False,
) -> LoadedModel:
    """The recipe's model with its strategy attached, or with the trained `artifact` loaded; with
    `bare` the base alone.

    `names` are the label names, `precision` is 'bf16' or 'fp32'. Raises `RecipeError` if model and
    recipe are incompatible.
    """
    with quiet_transformers():
        config = load_config(recipe, source.location, names)
        packed = is_packed(recipe, config)
        if config.pad_token_id is None:  # RoBERTa's positions start at it
            config.pad_token_id = tokenizer.pad_token_id
        # not transformers' `set_seed`, whose module imports peft, which planning does not need
        torch.manual_seed(recipe.training.seed)
        head = find_pretrained_head(recipe.task, config, source.location, names)
        base = load_base(recipe, source.location, config, DTYPES[precision], packed, head)
        extend(base, tokenizer, recipe.task.markers())
        keep_head_in_fp32(base, recipe.task)
        before = count_base_parameters(base)
        if bare:
            module: nn.Module = base
        elif artifact is None:
            module = recipe.strategy.adapt(base, recipe.task)
        else:
            module = recipe.strategy.load(base, artifact, recipe.task)
    if recipe.training.gradient_checkpointing:  # after the strategy: peft 0.21 would otherwise
        # require gradients of the embeddings, which only re-entrant checkpoints need
        base.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    num_virtual_tokens = 0 if bare else recipe.strategy.num_prompt_tokens
    batcher = make_batcher(recipe.task, module, base, tokenizer, packed, num_virtual_tokens)
    parameters = count_parameters(module, before)
    notes = (*model_notes(recipe, config, packed), *([head.note] if head else []), *tokenizer.notes)
    return LoadedModel(module, tokenizer, batcher, parameters, notes)


def make_batcher(
    task: Task,
    module: nn.Module,
    base: PreTrainedModel,
    tokenizer: Any,
    packed: bool,
    num_virtual_tokens: int,
) -> Batcher:
    """The batcher for `module`, whose head is set up to read the tokens that the task needs."""
    reads = attach_token_selection(
        module, base, packed, num_virtual_tokens, task.reading, task.pools_markers
    )
    position, start = first_position(base.config), decoder_start(base.config, task)
    return Batcher(packed, tokenizer.pad_token_id, position, reads, task.reading, start)


def model_notes(recipe: Recipe, config: PretrainedConfig, packed: bool) -> tuple[str, ...]:
    """Notes for the record on packing, dropout, input length and precision."""
    notes = []
    if recipe.training.packing == "off":
        notes.append("padded: training.packing=off")
    elif not recipe.strategy.packs:
        notes.append(f"padded: 'strategy: {recipe.strategy.kind}' needs one row per sequence")
    elif not packed:
        notes.append(f"padded: packing is not tested for {config.model_type}")
    if recipe.training.dropout == "auto" and not recipe.strategy.trains_base:
        notes.append("dropout is 0 because the base is frozen (training.dropout=auto)")
    how = getattr(recipe.task, "generate", None)
    if how is not None and not config.is_encoder_decoder:
        room = room_for_questions(recipe, config, how.max_new_tokens)
        if room is not None and room < recipe.data.max_length:
            notes.append(
                f"prompts are truncated to {room} tokens to leave room for the generated ones"
            )
    if recipe.quantize.bits == 8:
        notes.append("inputs of 8-bit layers are cast to float16 (bitsandbytes)")
    return tuple(notes)


def meta_model(
    recipe: Recipe, folder: str, names: Sequence[str]
) -> tuple[nn.Module, ParameterCount]:
    """The adapted model and its parameter counts on the meta device; no weights are loaded."""
    with quiet_transformers(), torch.device("meta"):
        config = load_config(recipe, folder, names)
        # an upper bound: without the tokenizer, spare rows of the embeddings are unknown
        config.vocab_size += len(recipe.task.markers())
        base = recipe.task.auto_class(config).from_config(config)
        before = count_base_parameters(base)
        module = recipe.strategy.adapt(base, recipe.task)
    return module, count_parameters(module, before)


def load_config(recipe: Recipe, folder: str, names: Sequence[str]) -> PretrainedConfig:
    """The model's configuration with the label names and the recipe's dropout.

    Raises `RecipeError` with everything in which recipe and model are incompatible.
    """
    config = AutoConfig.from_pretrained(folder, **recipe.task.configuration(names))
    faults = []
    auto_class = recipe.task.auto_class(config)
    if type(config) not in auto_class._model_mapping:
        what = (
            f"the architecture {config.model_type!r} has no head for 'task: {recipe.task.kind}' in "
            "transformers - choose another model"
        )
        faults.append(Fault("model", what))
    else:
        faults += recipe.strategy.incompatibilities(config, recipe.task)
    faults += length_faults(recipe, config)
    if faults:
        raise RecipeError(f"recipe {recipe.name!r} does not fit its model:", faults)
    set_dropout(config, recipe)
    rows = embedding_rows(config)
    if config.pad_token_id is not None and rows is not None and config.pad_token_id >= rows:
        config.pad_token_id = None  # replaced by the tokenizer's, which has an embedding
    config.use_cache = False
    return cast(PretrainedConfig, config)


def is_packed(recipe: Recipe, config: PretrainedConfig) -> bool:
    """Whether batches are packed: if enabled, and tested to equal padded ones for the
    architecture."""
    allowed = recipe.training.packing != "off" and recipe.strategy.packs
    entry = ARCHITECTURES.get(config.model_type)
    return allowed and entry is not None and entry.packs


def load_tokenizer(folder: str, task: Task | None = None) -> Any:
    """The model's tokenizer with a padding token, and the markers that the task adds.

    Raises `DataError` if its files are missing from `folder`, `RecipeError` if texts of the task
    can become tokens without an embedding.
    """
    has_config = (Path(folder) / "config.json").is_file()
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder) if has_config else PretrainedConfig()
        tokenizer = open_tokenizer(Path(folder), config)
    rows = embedding_rows(config)
    note = set_padding_token(tokenizer, rows)
    tokenizer.notes = (note,) if note else ()
    add_marker_tokens(tokenizer, task.markers() if task is not None else ())
    # a task encodes target and source separately only if the model has an encoder
    tokenizer.feeds_encoder = task is not None and config.is_encoder_decoder
    # the embeddings are resized for markers
    tokenizer.rows = None if task is not None and task.markers() else rows
    if task is not None:
        check_embedding_rows(tokenizer, task)
    return tokenizer


def decoder_start(config: PretrainedConfig, task: Task) -> int | None:
    """The start token of a decoder's sequences, if the task reads the decoder's outputs; else
    None."""
    if task.reading != "labels" or not config.is_encoder_decoder:
        return None
    start = getattr(config, "decoder_start_token_id", None)
    return int(config.pad_token_id if start is None else start)


def load_base(
    recipe: Recipe,
    folder: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    packed: bool,
    head: PretrainedHead | None,
) -> PreTrainedModel:
    """The base model with a new head, or its own `head`, in `dtype` or quantized.

    Raises `RecipeError` if the files do not match the configuration.
    """
    packed_attention.register()
    unquantized = layers_outside_blocks(recipe, config) if recipe.quantize.bits else []
    model, info = recipe.task.auto_class(config).from_pretrained(
        folder,
        output_loading_info=True,
        config=config,
        dtype=dtype,
        attn_implementation=packed_attention.PACKED if packed else None,  # the model's best
        use_safetensors=True,
        key_mapping=checkpoint_key_mapping(recipe.task.auto_class(config), config),
        ignore_mismatched_sizes=head is not None,
        **recipe.quantize.loading(dtype, unquantized),
    )
    guard(model)
    if head is not None:
        head.check_mismatches(recipe.model, info["mismatched_keys"])
        head.apply(model, recipe.training.seed)
    if recipe.task.reading == "labels" and recipe.model not in TINY:  # whose weights are random
        check_no_missing_weights(recipe.model, info["missing_keys"])
    return model.eval()  # type: ignore[no-any-return]


def layers_outside_blocks(recipe: Recipe, config: PretrainedConfig) -> list[str]:
    """The full names of the linear layers that are not quantized (head, pooler, ...): transformers
    5.23 matches a part of a name only at its start or end."""
    with torch.device("meta"):
        model = recipe.task.auto_class(config).from_config(config)
    return sorted(set(linear_modules(model)) - set(linear_layers(model)))


def keep_head_in_fp32(model: PreTrainedModel, task: Task) -> None:
    """Compute new heads, and so all losses, in fp32, whatever the dtype of the base."""
    for name in head_names(model) if task.trains_head else []:
        head = model.get_submodule(name)
        head.float()
        head.register_forward_pre_hook(cast_to_fp32)


def cast_to_fp32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of an fp32 head, in fp32."""
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def count_base_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Weights of base and head before the strategy is attached; shared ones count once."""
    heads = tuple(f"{name}." for name in head_names(model))
    sizes = {"base": 0, "head": 0}
    for name, parameter in model.named_parameters():
        sizes["head" if name.startswith(heads) else "base"] += size_of(parameter)
    return sizes


def count_parameters(module: nn.Module, before: dict[str, int]) -> ParameterCount:
    """Weights by part: a 4-bit weight counts as one, shared ones and a trained head once."""
    sizes = {name: size_of(parameter) for name, parameter in module.named_parameters()}
    # PEFT trains a copy of the head and keeps the original
    total = sum(size for name, size in sizes.items() if ".modules_to_save." not in name)
    return ParameterCount(
        trainable=sum(sizes[name] for name in trainable(module)),
        total=total,
        adapter=total - sum(before.values()),
        **before,
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence load reports and progress bars of transformers."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
