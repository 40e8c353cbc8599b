"""The memory probe: the longest batch is tried before step 1, so that what will not fit shows at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from peftkit.errors import RunError
from peftkit.evaluation import on_device
from peftkit.model import Assembled
from peftkit.recipe import Recipe
from peftkit.record import RunFolder
from peftkit.world import World, any_rank, say


def fitting_micro_batch(
    recipe: Recipe, assembled: Assembled, examples: Any, share: int, folder: RunFolder, world: World
) -> int:
    """Examples a forward pass, such that the longest fit; kept from then on, also on resume.

    Raises `RunError` when not even one example fits, or a fixed `micro_batch_size` does not.
    """
    known = folder.description().get("micro_batch_size")
    if known is not None:
        return int(known)
    wanted = recipe.training.micro_batch_size
    lengths = examples["length"]
    first = share if wanted == "auto" else min(int(wanted), share)
    if wanted == "auto":
        first = largest_divisor(share, max(1, recipe.training.max_tokens // max(lengths)))
    elif share % first:
        raise RunError(
            f"training.micro_batch_size={wanted} does not divide the {share} examples that each of "
            f"{world.size} ranks takes a step - use {largest_divisor(share, first)}"
        )
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    micro = first
    while not any_rank_fits(recipe, assembled, [examples[i] for i in longest[:micro]], world):
        smaller = largest_divisor(share, micro - 1)
        if wanted != "auto" or micro == 1:
            raise RunError(
                f"out of memory: {micro} example(s) of {lengths[longest[0]]} tokens do not fit - use a "
                "smaller training.micro_batch_size, a smaller data.max_length, "
                "training.gradient_checkpointing=true or quantize=4bit"
            )
        say(world, f"out of memory at {micro} examples a forward pass: trying {smaller}")
        micro = smaller
    if world.is_main:
        folder.describe(micro_batch_size=micro)
    return micro


def largest_divisor(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most` (at least 1)."""
    return max(n for n in range(1, max(1, min(whole, most)) + 1) if whole % n == 0)


def any_rank_fits(recipe: Recipe, assembled: Assembled, rows: list[Any], world: World) -> bool:
    """Whether a forward and a backward pass over `rows` fit in memory on every rank."""
    return not any_rank(world, not fits(recipe, assembled, rows))


def fits(recipe: Recipe, assembled: Assembled, rows: list[Any]) -> bool:
    """Whether a forward and a backward pass fit; gradients are dropped, random states restored."""
    module = assembled.module
    device = next(module.parameters()).device
    with kept_random_state():
        module.train()
        try:
            batch = on_device(assembled.batcher(rows), device)
            labels = batch.pop("labels")
            loss = recipe.task.loss(module(**batch).logits, labels, recipe.training.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            return True
        except (torch.OutOfMemoryError, MemoryError):
            return False
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            return False
        finally:
            module.zero_grad(set_to_none=True)
            module.eval()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave torch's random number generators as they were."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=list(devices)):
        yield
