"""Text generation in batches of similar length, with stop texts and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError
from peftkit.evaluation.streaming import OnText, WordStreamer, cut_at_stop
from peftkit.loading.model import LoadedModel, quiet_transformers
from peftkit.models.architectures import unwrap_model
from peftkit.models.packed_attention import PACKED, PACKED_SDPA
from peftkit.preprocessing.batching import longest_first
from peftkit.runtime.distributed import World, gather, say
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation

MAX_TOKENS = 8192
"""Padded tokens of prompts and answers in a batch."""
MODEL_SETTINGS = (
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens", "bos_token_id",
)  # fmt: skip
"""Settings of the model's own generation config that are kept: all others are the recipe's."""


def generate(
    assembled: LoadedModel,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    stop_ids: Sequence[int],
    first_id: int | None = None,
    show: OnText | None = None,
) -> list[str]:
    """Return the text generated for each prompt (or source, for an encoder-decoder), without
    special tokens; white space is kept, since code may need it. `show` receives the text of a
    single prompt while it is generated."""
    found = generate_tokens(assembled, prompts, how, stop_ids, first_id, show)
    ends = find_end_ids(assembled, stop_ids)
    return [decode_answer(ids, assembled.tokenizer, ends, how.stop) for ids in found]


def decode_answer(
    ids: Sequence[int], tokenizer: Any, ends: Sequence[int], stops: Sequence[str]
) -> str:
    """Return an answer's tokens as text, up to the first stop text."""
    # an end that is no special token of the tokenizer would be decoded as text
    said = [token for token in ids if token not in ends]
    return cut_at_stop(tokenizer.decode(said, skip_special_tokens=True), stops)


def find_end_ids(assembled: LoadedModel, stop_ids: Sequence[int]) -> list[int]:
    """Return the ids that end an answer, including those in the model's generation config."""
    return sorted({*stop_ids, *model_end_ids(unwrap_model(assembled.module))})


def generate_tokens(
    assembled: LoadedModel,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    stop_ids: Sequence[int],
    first_id: int | None = None,
    show: OnText | None = None,
) -> list[list[int]]:
    """Return the tokens of each answer, with the token that ends it."""
    ends = find_end_ids(assembled, stop_ids)
    found: dict[int, list[int]] = {}
    for indices in batch_prompts(assembled, prompts, how):
        batch = [prompts[i] for i in indices]
        said = generate_batch(assembled, batch, how, ends, first_id, show)
        found |= zip(indices, (trim_to_end(ids, ends) for ids in said), strict=True)
    return [found[index] for index in range(len(prompts))]


def batch_prompts(
    assembled: LoadedModel, prompts: Sequence[Sequence[int]], how: Generation
) -> Iterator[list[int]]:
    """Yield indices of prompts per batch, longest first; with virtual tokens only prompts of equal
    length, since PEFT 0.21 drops the position ids that left padding needs."""
    lengths = [len(prompt) + how.max_new_tokens for prompt in prompts]
    known = getattr(assembled.module, "active_peft_config", None)
    # hypotheses of a beam search each take a row of the batch
    for indices in longest_first(lengths, MAX_TOKENS // how.num_beams):
        if known is not None and known.is_prompt_learning:
            yield from (list(same) for _, same in groupby(indices, lambda i: lengths[i]))
        else:
            yield indices


def trim_to_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to the first end token, without padding."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: last + 1])


@torch.no_grad()
def generate_batch(
    assembled: LoadedModel,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    ends: Sequence[int],
    first_id: int | None = None,
    show: OnText | None = None,
) -> list[list[int]]:
    """Return the new tokens of one batch, with left padding for decoder-only models."""
    module: Any = assembled.module
    base, tokenizer, pad = unwrap_model(module), assembled.tokenizer, assembled.batcher.pad_id
    apart, device = base.config.is_encoder_decoder, next(module.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([pad_row(prompt, width, pad, left=not apart) for prompt in prompts])
    ones = [pad_row([1] * len(prompt), width, 0, left=not apart) for prompt in prompts]
    config = generation_config(base.generation_config, how, ends, pad, first_id)
    # hypotheses of a beam search are not known word by word
    added = tokenizer.added_tokens_decoder
    written = [*how.stop, *(added[i].content for i in ends if i in added)]
    words = WordStreamer(tokenizer, show, written) if show and how.num_beams == 1 else None
    stops = StoppingCriteriaList([StopTexts(how.stop, tokenizer, 0 if apart else width)])
    with generation_mode(module, base), seeded(how), quiet_transformers():
        found = module.generate(
            input_ids=ids.to(device),
            attention_mask=torch.tensor(ones).to(device),
            generation_config=config,
            streamer=words,
            stopping_criteria=stops if how.stop else None,
        )
    said: list[list[int]] = found[:, 1 if apart else width :].tolist()  # a decoder's start is none
    return said


class StopTexts(StoppingCriteria):
    """Stops a row once its answer contains one of the texts; transformers 5.23's own criterion does
    not support WordPiece tokenizers."""

    def __init__(self, stops: Sequence[str], tokenizer: Any, start: int) -> None:
        self.stops, self.tokenizer, self.start = stops, tokenizer, start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        """Return whether each row is complete: (batch,)."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def pad_row(values: Sequence[int], width: int, filler: int, left: bool) -> list[int]:
    """Return the values padded to `width` on one side."""
    more = [filler] * (width - len(values))
    return [*more, *values] if left else [*values, *more]


def generation_config(
    own: Any, how: Generation, ends: Sequence[int], pad: int | None, first_id: int | None = None
) -> GenerationConfig:
    """Return the generation config of the recipe, with the model's required settings from its
    `own`; `first_id` is the forced first token of a decoder."""
    kept = {name: getattr(own, name, None) for name in MODEL_SETTINGS}
    if first_id is not None:
        kept["forced_bos_token_id"] = first_id
    drawing = {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    return GenerationConfig(
        **{name: value for name, value in kept.items() if value is not None},
        **(drawing if how.temperature else {}),
        do_sample=how.temperature > 0,
        num_beams=how.num_beams,
        max_new_tokens=how.max_new_tokens,
        min_new_tokens=how.min_new_tokens or None,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )


def model_end_ids(base: PreTrainedModel) -> list[int]:
    """Return the end ids in the model's own configuration."""
    return configured_end_ids(base.generation_config, base.config)


def configured_end_ids(*configurations: Any) -> list[int]:
    """Return the end ids in the first of the configurations that has any."""
    named = (getattr(each, "eos_token_id", None) for each in configurations)
    said: Any = next((each for each in named if each is not None), [])
    return [said] if isinstance(said, int) else list(said)


@contextmanager
def generation_mode(module: Any, base: PreTrainedModel) -> Iterator[None]:
    """Prepare the model for generation, and restore it afterwards.

    Packed attention has no KV cache, and the model's own generation config would fill in settings
    that the recipe does not set.
    """
    attention = base.config._attn_implementation
    packed = attention in (PACKED, PACKED_SDPA)
    was_training, own = module.training, base.generation_config
    module.eval()
    base.generation_config = GenerationConfig()
    if packed:
        base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if packed:
            base.set_attn_implementation(attention)
        base.generation_config = own
        module.train(was_training)


@contextmanager
def seeded(how: Generation) -> Iterator[None]:
    """Seed sampling by the recipe, and restore torch's random state afterwards."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(how.seed)
        yield


def sample_rows(count: int, how: Generation) -> list[int]:
    """Return the indices of the rows to generate for, in order; a larger sample contains a smaller
    one."""
    generator = torch.Generator().manual_seed(how.seed)
    return sorted(torch.randperm(count, generator=generator)[: how.rows].tolist())


class GeneratedTexts(NamedTuple):
    """Generated texts of a split, as fields of `Predictions`."""

    texts: list[str | None]
    samples: list[list[str] | None]


def generate_rows(
    recipe: Recipe, assembled: LoadedModel, rows: Any, world: World
) -> GeneratedTexts:
    """Return a text for each sampled row, on every rank, and all samples if a grader is set; None
    for other rows, and nothing if the task does not generate."""
    task, how = recipe.task.text_generator, recipe.task.generation
    if task is None or how is None or not len(rows):
        return GeneratedTexts([], [])
    if world.sharding in ("fsdp", "deepspeed"):
        say(world, f"no text is generated under {world.sharding}: predict from the artifact")
        return GeneratedTexts([], [])
    chosen = sample_rows(len(rows), how)
    mine = chosen[world.rank :: world.size]
    columns = {name: [rows[i][name] for i in mine] for name in rows.column_names}
    asked = task.prompt_rows(columns)
    # a seed each: one prompt's samples may else be the same draws in several batches
    ways = [how.model_copy(update={"seed": how.seed + n}) for n in range(how.samples)]
    said = [generate_answers(recipe, assembled, asked, task, way) for way in ways] if mine else []
    known = dict(gather(world, list(zip(mine, map(list, zip(*said, strict=True)), strict=True))))
    samples = [known.get(index) for index in range(len(rows))]
    texts = [None if each is None else each[0].strip() for each in samples]
    return GeneratedTexts(texts, samples if how.grader else [])


def generate_answers(
    recipe: Recipe,
    assembled: LoadedModel,
    columns: Mapping[str, Sequence[Any]],
    task: LanguageModeling,
    how: Generation,
    show: OnText | None = None,
) -> list[str]:
    """Return the text generated for each row, with surrounding white space."""
    longest = max_prompt_length(recipe, assembled, how)
    tokenizer = assembled.tokenizer
    prompts = task.prompts(columns, tokenizer, longest)
    ends, first = task.stop_ids(tokenizer), task.first_id(tokenizer)
    return generate(assembled, prompts, how, ends, first, show)


def max_prompt_length(recipe: Recipe, assembled: LoadedModel, how: Generation) -> int:
    """Return the maximum number of tokens of a prompt, such that an answer fits after it.

    Raises `RecipeError` if there is no room for a prompt.
    """
    config = unwrap_model(assembled.module).config
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if config.is_encoder_decoder or not positions:
        return recipe.data.max_length
    room = (
        positions
        - how.max_new_tokens
        - recipe.strategy.num_prompt_tokens
        - assembled.batcher.first_position
    )
    if room < 1:
        what = f"leaves no room for a prompt: the model has {positions} positions"
        fault = Fault("task.generate.max_new_tokens", f"{what} (got {how.max_new_tokens})")
        raise RecipeError("the texts do not fit:", [fault])
    return min(recipe.data.max_length, room)
