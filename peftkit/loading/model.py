"""Assembly: a base model loaded, quantized, given a head and a strategy, and counted."""

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
from peftkit.models.added_tokens import add_markers, extend
from peftkit.models.architectures import (
    first_position,
    head_names,
    linear_layers,
    linear_modules,
    refuse_random_output,
    renaming,
)
from peftkit.models.layouts import ARCHITECTURES
from peftkit.models.parameters import size_of
from peftkit.models.quantization import guard
from peftkit.preprocessing.batching import Batcher
from peftkit.preprocessing.sequence_lengths import room_for_questions, too_long
from peftkit.preprocessing.tokenizers import embedding_rows, refuse_beyond, settle_padding
from peftkit.records.record import ParameterCount
from peftkit.strategies.base import trainable
from peftkit.tasks.base import Task
from peftkit.text.tokenizer_files import opened

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train or predict, and how to feed it."""

    module: nn.Module
    tokenizer: Any
    batcher: Batcher
    parameters: ParameterCount
    notes: tuple[str, ...]


def load_model(
    recipe: Recipe,
    source: Source,
    tokenizer: Any,
    names: Sequence[str],
    precision: str,
    artifact: Path | None = None,
    bare: bool = False,
) -> LoadedModel:
    """The recipe's model with its strategy attached, or with the trained `artifact` in place; the
    `bare` one as the base is.

    `names` are the labels'. Raises `RecipeError` where model and recipe do not fit.
    """
    with quiet_transformers():
        config = load_config(recipe, source.location, names)
        packed = is_packed(recipe, config)
        if config.pad_token_id is None:  # RoBERTa counts positions from its own
            config.pad_token_id = tokenizer.pad_token_id
        # not transformers' `set_seed`, whose module imports peft: planning does without
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
    if recipe.training.gradient_checkpointing:  # behind the strategy: peft 0.21 would else ask for
        # gradients of the embeddings' output, which only re-entrant checkpoints need
        base.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    ahead = 0 if bare else recipe.strategy.ahead
    batcher = make_batcher(recipe.task, module, base, tokenizer, packed, ahead)
    parameters = count_parameters(module, before)
    notes = (*notes_of(recipe, config, packed), *([head.note] if head else []), *tokenizer.notes)
    return LoadedModel(module, tokenizer, batcher, parameters, notes)


def make_batcher(
    task: Task, module: nn.Module, base: PreTrainedModel, tokenizer: Any, packed: bool, ahead: int
) -> Batcher:
    """What makes batches for `module`, which is made to read them as the task wants it."""
    reads = attach_token_selection(module, base, packed, ahead, task.reading, task.reads_marked)
    position, start = first_position(base.config), decoder_start(base.config, task)
    return Batcher(packed, tokenizer.pad_token_id, position, reads, task.reading, start)


def notes_of(recipe: Recipe, config: PretrainedConfig, packed: bool) -> tuple[str, ...]:
    """What a reader of the scores must know of how the model was fed and regularized."""
    notes = []
    if recipe.training.packing == "off":
        notes.append("padded: training.packing=off")
    elif not recipe.strategy.packs:
        notes.append(f"padded: 'strategy: {recipe.strategy.kind}' needs a row for each sequence")
    elif not packed:
        notes.append(f"padded: packing is not proven for {config.model_type}")
    if recipe.training.dropout == "auto" and not recipe.strategy.trains_base:
        notes.append("the base's dropout is 0, for it is frozen (training.dropout=auto)")
    how = getattr(recipe.task, "generate", None)
    if how is not None and not config.is_encoder_decoder:
        room = room_for_questions(recipe, config, how.max_new_tokens)
        if room is not None and room < recipe.data.max_length:
            notes.append(f"of questions that are answered at most {room} tokens are read")
    if recipe.quantize.bits == 8:
        notes.append("what enters an 8-bit layer is cast to float16 (bitsandbytes)")
    return tuple(notes)


def meta_model(
    recipe: Recipe, folder: str, names: Sequence[str]
) -> tuple[nn.Module, ParameterCount]:
    """The adapted model and its counts on the meta device: nothing is loaded."""
    with quiet_transformers(), torch.device("meta"):
        config = load_config(recipe, folder, names)
        # as if the table had no rows to spare: the tokenizer is not at hand
        config.vocab_size += len(recipe.task.markers())
        base = recipe.task.auto_class(config).from_config(config)
        before = count_base_parameters(base)
        module = recipe.strategy.adapt(base, recipe.task)
    return module, count_parameters(module, before)


def load_config(recipe: Recipe, folder: str, names: Sequence[str]) -> PretrainedConfig:
    """The model's configuration with the labels' names and the recipe's dropout."""
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
    faults += too_long(recipe, config)
    if faults:
        raise RecipeError(f"recipe {recipe.name!r} does not fit its model:", faults)
    set_dropout(config, recipe)
    rows = embedding_rows(config)
    if config.pad_token_id is not None and rows is not None and config.pad_token_id >= rows:
        config.pad_token_id = None  # the tokenizer's, which has a row, is taken instead
    config.use_cache = False
    return cast(PretrainedConfig, config)


def is_packed(recipe: Recipe, config: PretrainedConfig) -> bool:
    """Whether batches are packed: asked for, and proven equal to padded for the architecture."""
    allowed = recipe.training.packing != "off" and recipe.strategy.packs
    entry = ARCHITECTURES.get(config.model_type)
    return allowed and entry is not None and entry.packs


def load_tokenizer(folder: str, task: Task | None = None) -> Any:
    """The model's tokenizer, with a padding token and what the task adds to the vocabulary.

    Raises `DataError` where the folder lacks its files, `RecipeError` where texts of the task can
    become tokens that the model has no embedding for.
    """
    known = (Path(folder) / "config.json").is_file()
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder) if known else PretrainedConfig()
        tokenizer = opened(Path(folder), config)
    rows = embedding_rows(config)
    note = settle_padding(tokenizer, rows)
    tokenizer.notes = (note,) if note else ()
    add_markers(tokenizer, task.markers() if task is not None else ())
    # a task encodes a target apart from its source only where the model has an encoder
    tokenizer.feeds_encoder = task is not None and config.is_encoder_decoder
    # the embeddings grow where there are markers
    tokenizer.rows = None if task is not None and task.markers() else rows
    if task is not None:
        refuse_beyond(tokenizer, task)
    return tokenizer


def decoder_start(config: PretrainedConfig, task: Task) -> int | None:
    """The token that a decoder's sequences begin with, where the task reads a decoder."""
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
    """The base model with a fresh head, or its own `head`, in `dtype` or quantized.

    Raises `RecipeError` where its files do not fit its configuration.
    """
    packed_attention.register()
    whole = layers_outside_blocks(recipe, config) if recipe.quantize.bits else []
    model, said = recipe.task.auto_class(config).from_pretrained(
        folder,
        output_loading_info=True,
        config=config,
        dtype=dtype,
        attn_implementation=packed_attention.PACKED if packed else None,  # the model's best
        use_safetensors=True,
        key_mapping=renaming(recipe.task.auto_class(config), config),
        ignore_mismatched_sizes=head is not None,
        **recipe.quantize.loading(dtype, whole),
    )
    guard(model)
    if head is not None:
        head.refuse_others(recipe.model, said["mismatched_keys"])
        head.settle(model, recipe.training.seed)
    if recipe.task.reading == "labels" and recipe.model not in TINY:  # whose weights are random
        refuse_random_output(recipe.model, said["missing_keys"])
    return model.eval()  # type: ignore[no-any-return]


def layers_outside_blocks(recipe: Recipe, config: PretrainedConfig) -> list[str]:
    """The full names of the linear layers that stay whole (head, pooler, ...): transformers 5.23
    takes a part of a name only where names begin or end with it."""
    with torch.device("meta"):
        model = recipe.task.auto_class(config).from_config(config)
    return sorted(set(linear_modules(model)) - set(linear_layers(model)))


def keep_head_in_fp32(model: PreTrainedModel, task: Task) -> None:
    """New heads and all losses are computed in fp32, whatever the base rests in."""
    for name in head_names(model) if task.trains_head else []:
        head = model.get_submodule(name)
        head.float()
        head.register_forward_pre_hook(cast_to_fp32)


def cast_to_fp32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What enters an fp32 head, as fp32."""
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def count_base_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Weights before the strategy: the base's and the head's, shared ones once."""
    heads = tuple(f"{name}." for name in head_names(model))
    sizes = {"base": 0, "head": 0}
    for name, parameter in model.named_parameters():
        sizes["head" if name.startswith(heads) else "base"] += size_of(parameter)
    return sizes


def count_parameters(module: nn.Module, before: dict[str, int]) -> ParameterCount:
    """Weights by part: a 4-bit weight is one weight, shared ones and a trained head count once."""
    sizes = {name: size_of(parameter) for name, parameter in module.named_parameters()}
    # PEFT trains a copy of the head and keeps the first one beside it
    total = sum(size for name, size in sizes.items() if ".modules_to_save." not in name)
    return ParameterCount(
        trainable=sum(sizes[name] for name in trainable(module)),
        total=total,
        adapter=total - sum(before.values()),
        **before,
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load reports or bars: that a head is new is no news here, and the run has its own bar."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
