"""The memory probe: the longest batch is tried before step 1, so that what will not fit shows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.evaluation.prediction import on_device
from peftkit.loading.model import LoadedModel
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, any_rank, on_main, say
from peftkit.strategies.base import trainable

ALLOCATION_FAILED = ("can't allocate memory", "could not create a memory", "bad allocation")
"""How torch and oneDNN word it on a CPU, where there is no error class of its own."""
SMALLER = (
    "use a smaller training.micro_batch_size, a smaller data.max_length, "
    "training.gradient_checkpointing=true or quantize=4bit"
)


def fitting_micro_batch(
    recipe: Recipe, assembled: LoadedModel, examples: Any, share: int, folder: RunDir, world: World
) -> int:
    """Examples a forward pass, such that the longest fit; kept from then on, also on resume.

    `share` is how many a rank takes of each optimizer step. Raises `RunError` when not even one
    example fits, or a fixed `micro_batch_size` does not.
    """
    known = on_main(world, lambda: folder.description().get("micro_batch_size"))
    if known is not None and share % known == 0:  # it need not be, on another number of ranks
        return int(known)
    lengths = list(examples["length"])  # a column reads a row from the disk each time
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    micro = first_try(recipe, share, lengths[longest[0]], world)
    while not every_rank_fits(recipe, assembled, [examples[i] for i in longest[:micro]], world):
        if recipe.training.micro_batch_size != "auto" or micro == 1:
            raise RunError(
                f"out of memory: {micro} example(s) of {lengths[longest[0]]} tokens do not fit - "
                f"{SMALLER}"
            )
        smaller = largest_divisor(share, micro - 1)
        say(world, f"out of memory at {micro} examples a forward pass: trying {smaller}")
        micro = smaller
    on_main(world, lambda: folder.describe(micro_batch_size=micro))
    return micro


def first_try(recipe: Recipe, share: int, longest: int, world: World) -> int:
    """The micro-batch that the recipe asks for.

    Raises `RunError` when it does not divide what a rank takes of a step.
    """
    wanted = recipe.training.micro_batch_size
    if wanted == "auto":
        return largest_divisor(share, max(1, tokens_a_pass(recipe) // longest))
    if share % wanted:
        near = largest_divisor(share, wanted)
        raise RunError(
            f"training.micro_batch_size={wanted} does not divide the {share} examples that each of "
            f"{world.size} ranks takes a step - use training.micro_batch_size={near}"
        )
    return wanted


def tokens_a_pass(recipe: Recipe) -> int:
    """Tokens that a forward pass aims at, by the recipe or by what the device likes."""
    wanted = recipe.training.max_tokens
    if wanted != "auto":
        return wanted
    return 16384 if torch.cuda.is_available() else 2048


def largest_divisor(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most` (at least 1)."""
    return max(n for n in range(1, max(1, min(whole, most)) + 1) if whole % n == 0)


def every_rank_fits(
    recipe: Recipe, assembled: LoadedModel, rows: Sequence[Any], world: World
) -> bool:
    """Whether a forward and a backward pass over `rows` fit in memory on every rank."""
    return not any_rank(world, not fits(recipe, assembled, rows))


def fits(recipe: Recipe, assembled: LoadedModel, rows: Sequence[Any]) -> bool:
    """Whether a forward and a backward pass fit beside the optimizer's state."""
    try:
        held = trainable(assembled.module).values()
        state = [optimizer_state(parameter) for parameter in held]
        try_pass(recipe, assembled, rows)
        return bool(state)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False


def try_pass(recipe: Recipe, assembled: LoadedModel, rows: Sequence[Any]) -> None:
    """A forward and a backward pass that leave nothing behind: gradients are dropped and random
    states restored."""
    module = assembled.module
    device = next(module.parameters()).device
    with kept_random_state():
        module.train()
        try:
            batch = on_device(assembled.batcher(rows), device)
            labels = batch.pop("labels")
            task = recipe.task
            logits = task.logits(module(**batch))
            loss = task.loss(logits, labels, recipe.training.label_smoothing)
            loss.backward()
        finally:
            module.zero_grad(set_to_none=True)
            module.eval()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).strip()
    # oneDNN's word when there is no room for its code; with more behind it, it means other things
    failed = told == "could not create a primitive"
    return isinstance(error, RuntimeError) and (
        failed or any(words in told for words in ALLOCATION_FAILED)
    )


def out_of_memory(error: Exception) -> RunError:
    """What to say when memory ran out in the middle of a run."""
    told = str(error).strip().partition("\n")[0] or type(error).__name__
    return RunError(f"out of memory ({told}) - {SMALLER}")


def optimizer_state(parameter: Tensor) -> Tensor:
    """As much memory as MasterAdamW holds for a parameter from step 1 on: two moments, and the
    master with its gradient where the parameter does not rest in fp32."""
    copies = 2 if parameter.dtype == torch.float32 else 4
    return torch.empty((copies, *parameter.shape), dtype=torch.float32, device=parameter.device)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave torch's random number generators as they were."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=list(devices)):
        yield
