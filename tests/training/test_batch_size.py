"""The micro-batch size: real out-of-memory errors make it smaller, and nothing else does."""

from pathlib import Path

import pytest
import torch

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.runtime.distributed import World
from peftkit.training.batch_size import (
    allocate_optimizer_state,
    is_out_of_memory,
    largest_divisor,
    preserve_random_state,
    requested_micro_batch_size,
)
from support.run_processes import Zygote, killed_at, losses, only_run, record, same

ALONE = World(0, 1, 1, "fp32", "cpu", "none")
TIGHT = """
import os, resource
import peftkit.training.batch_size as probe
real = probe.fits_in_memory

def fits_in_memory(recipe, loaded, rows):
    tried.append(len(rows))
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + {megabytes} * 2**20
    if os.environ.get("RANK", "{rank}") == "{rank}":
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        return real(recipe, loaded, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

tried = []
probe.fits_in_memory = fits_in_memory
"""
"""Code that limits the memory of the process to its present size plus this."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with some megabytes of activations per example."""
    from transformers import BertConfig, BertModel

    from peftkit.hub.resolve import find_model
    from peftkit.loading.model import load_tokenizer

    folder = tmp_path_factory.mktemp("wide")
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=8192,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_out_of_memory_makes_the_micro_batch_smaller_and_it_stays_so(
    zygote: Zygote, tmp_path: Path, wide: str
) -> None:
    settings = (
        f"model={wide}",
        "training.batch_size=64",
        "training.precision=fp32",
        "training.epochs=4",
        "training.save_steps=1",
        "training.evaluate=never",
    )
    tight, free = tmp_path / "tight", tmp_path / "free"
    tight.mkdir()
    free.mkdir()
    before = TIGHT.format(megabytes=100, rank=0)
    ended = zygote.run(tight, *settings, before=before + killed_at(3))
    assert "out of memory at 64 examples a forward pass: trying 32" in ended.said
    ended = zygote.run(tight, *settings)
    assert "out of memory" not in ended.said
    assert zygote.run(free, *settings).code == 0
    sizes = [record(folder)["world"]["micro_batch_size"] for folder in (tight, free)]
    assert sizes[0] < 64 and sizes[1] == 64
    assert record(tight)["steps"] == record(free)["steps"] == 4
    assert losses(tight) == pytest.approx(losses(free), rel=1e-4)  # the same 64 examples a step


@pytest.mark.slow
def test_one_rank_short_of_memory_is_heeded_by_both(
    zygote: Zygote, tmp_path: Path, wide: str
) -> None:
    settings = (f"model={wide}", "training.batch_size=64", "training.precision=fp32")
    before = TIGHT.format(megabytes=60, rank=1)
    ended = zygote.run(tmp_path, *settings, "training.steps=2", ranks=2, before=before)
    assert ended.codes == [0, 0], ended.said
    assert "out of memory at 32 examples a forward pass: trying 16" in ended.said
    assert record(tmp_path)["world"]["micro_batch_size"] <= 16


@pytest.mark.slow
def test_when_nothing_fits_it_says_what_to_do_and_is_recorded(
    zygote: Zygote, tmp_path: Path, wide: str
) -> None:
    settings = (f"model={wide}", "training.batch_size=8", "training.precision=fp32")
    before = TIGHT.format(megabytes=0, rank=0)
    ended = zygote.run(tmp_path, *settings, before=before)
    assert ended.code == 2, ended.said
    assert "out of memory: 1 example(s) of" in ended.said
    assert "use a smaller training.micro_batch_size, a smaller data.max_length" in ended.said
    assert record(tmp_path)["status"] == "failed"
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    before = TIGHT.format(megabytes=60, rank=0)
    settings = (*settings, "training.batch_size=64", "training.micro_batch_size=64")
    ended = zygote.run(fixed, *settings, before=before)
    assert ended.code == 2
    assert "out of memory: 64 example(s)" in ended.said


@pytest.mark.slow
def test_the_probe_leaves_no_trace_in_the_losses(zygote: Zygote, tmp_path: Path) -> None:
    probed, unprobed = tmp_path / "probed", tmp_path / "unprobed"
    probed.mkdir()
    unprobed.mkdir()
    settings = ("training.dropout=0.2", "strategy.dropout=0.2", "training.steps=8")
    without = "import peftkit.training.trainer as t\nt.find_micro_batch_size = lambda *_: 8\n"
    assert zygote.run(probed, *settings).code == 0
    assert zygote.run(unprobed, *settings, before=without).code == 0
    assert record(probed)["world"]["micro_batch_size"] == 8
    assert same(probed, unprobed)
    assert only_run(probed).name == only_run(unprobed).name


def test_random_states_are_restored_after_an_error_too() -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(MemoryError), preserve_random_state():
        torch.rand(10)
        raise MemoryError
    assert torch.equal(torch.random.get_rng_state(), state)


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.float32)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_the_optimizers_memory_is_counted_in() -> None:
    resting = torch.zeros(3, 5, dtype=torch.bfloat16)
    assert allocate_optimizer_state(resting).shape == (4, 3, 5)
    assert allocate_optimizer_state(resting.float()).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("whole", "most", "found"), [(32, 20, 16), (12, 5, 4), (7, 6, 1), (8, 0, 1)]
)
def test_the_largest_divisor(whole: int, most: int, found: int) -> None:
    assert largest_divisor(whole, most) == found


def test_the_first_try_aims_at_the_recipes_tokens() -> None:
    recipe = Recipe.load("lora_imdb", "training.max_tokens=1024")
    assert (
        requested_micro_batch_size(recipe, 32, 100, ALONE) == 8
    )  # 10 rows of 100 tokens, and 8 divides 32
    assert requested_micro_batch_size(recipe, 32, 5000, ALONE) == 1
    fixed = recipe.but(training__micro_batch_size=8)
    assert requested_micro_batch_size(fixed, 16, 100, ALONE) == 8
    with pytest.raises(RunError, match=r"micro_batch_size=8 does not divide the 4 .* use .*=4"):
        requested_micro_batch_size(fixed, 4, 100, ALONE)
