"""The micro-batch size: the longest examples are tried before step 1."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.evaluation.prediction import move_to_device
from peftkit.loading.model import LoadedModel
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, any_rank, on_main, say
from peftkit.strategies.base import trainable

ALLOCATION_FAILED = ("can't allocate memory", "could not create a memory", "bad allocation")
"""Messages of torch and oneDNN on a CPU, where there is no error class for it."""
MEMORY_ADVICE = (
    "use a smaller training.micro_batch_size, a smaller data.max_length, "
    "training.gradient_checkpointing=true or quantize=4bit"
)


def find_micro_batch_size(
    recipe: Recipe, loaded: LoadedModel, examples: Any, share: int, folder: RunDir, world: World
) -> int:
    """The largest micro-batch size, up to the requested one, with which the longest examples fit.

    `share` is the number of examples per rank and optimizer step. The size is stored in `folder`
    and used again on resume. Raises `RunError` if not even one example fits, or if a fixed
    `micro_batch_size` does not.
    """
    stored = on_main(world, lambda: folder.description().get("micro_batch_size"))
    if stored is not None and share % stored == 0:  # may differ with another number of ranks
        return int(stored)
    lengths = list(examples["length"])  # each access to a column reads from disk
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    micro = requested_micro_batch_size(recipe, share, lengths[longest[0]], world)
    while not fits_on_every_rank(recipe, loaded, [examples[i] for i in longest[:micro]], world):
        if recipe.training.micro_batch_size != "auto" or micro == 1:
            raise RunError(
                f"out of memory: {micro} example(s) of {lengths[longest[0]]} tokens do not fit - "
                f"{MEMORY_ADVICE}"
            )
        smaller = largest_divisor(share, micro - 1)
        say(world, f"out of memory at {micro} examples a forward pass: trying {smaller}")
        micro = smaller
    on_main(world, lambda: folder.describe(micro_batch_size=micro))
    return micro


def requested_micro_batch_size(recipe: Recipe, share: int, longest: int, world: World) -> int:
    """The micro-batch size of the recipe; auto: as many examples of `longest` tokens as
    `tokens_per_pass` holds.

    Raises `RunError` if it does not divide the `share` of a rank in each step.
    """
    wanted = recipe.training.micro_batch_size
    if wanted == "auto":
        return largest_divisor(share, max(1, tokens_per_pass(recipe) // longest))
    if share % wanted:
        nearest = largest_divisor(share, wanted)
        raise RunError(
            f"training.micro_batch_size={wanted} does not divide the {share} examples per "
            f"step of each of {world.size} ranks - use training.micro_batch_size={nearest}"
        )
    return wanted


def tokens_per_pass(recipe: Recipe) -> int:
    """The target number of tokens per forward pass: `training.max_tokens`, or the default of the
    device."""
    wanted = recipe.training.max_tokens
    if wanted != "auto":
        return wanted
    return 16384 if torch.cuda.is_available() else 2048


def largest_divisor(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most` (at least 1)."""
    return max(n for n in range(1, max(1, min(whole, most)) + 1) if whole % n == 0)


def fits_on_every_rank(
    recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any], world: World
) -> bool:
    """Whether a forward and a backward pass over `rows` fit in memory on every rank."""
    return not any_rank(world, not fits_in_memory(recipe, loaded, rows))


def fits_in_memory(recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any]) -> bool:
    """Whether a forward and a backward pass fit in memory next to the optimizer state."""
    try:
        parameters = trainable(loaded.module).values()
        state = [allocate_optimizer_state(parameter) for parameter in parameters]
        forward_and_backward(recipe, loaded, rows)
        return bool(state)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False


def forward_and_backward(recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any]) -> None:
    """Run a forward and a backward pass without side effects: gradients are dropped, and the random
    state is restored."""
    module = loaded.module
    device = next(module.parameters()).device
    with preserve_random_state():
        module.train()
        try:
            batch = move_to_device(loaded.batcher(rows), device)
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
    """Whether an error means out of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).strip()
    # oneDNN's message when its code cannot be allocated; a longer one has other causes
    failed = message == "could not create a primitive"
    return isinstance(error, RuntimeError) and (
        failed or any(text in message for text in ALLOCATION_FAILED)
    )


def out_of_memory_error(error: Exception) -> RunError:
    """The `RunError` for an out-of-memory error in the middle of a run."""
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    return RunError(f"out of memory ({message}) - {MEMORY_ADVICE}")


def allocate_optimizer_state(parameter: Tensor) -> Tensor:
    """Allocate as much memory as MasterWeightAdamW needs per parameter: two moments, and the master
    weight with its gradient if the parameter is not in fp32."""
    copies = 2 if parameter.dtype == torch.float32 else 4
    return torch.empty((copies, *parameter.shape), dtype=torch.float32, device=parameter.device)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the states of torch's random number generators on exit."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=list(devices)):
        yield
