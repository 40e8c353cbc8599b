"""The batch layout: the fastest as measured, cached, with the same results up to rounding."""

import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel
from peftkit.records.run_dir import RunDir
from peftkit.runtime import measurements
from peftkit.training import packing
from peftkit.training.packing import (
    choose_engine,
    fastest_engine,
    measure_engines,
    num_passes,
    sample_micro_batches,
    select_engine,
    with_engine,
)
from support.run_processes import Zygote, killed_at, only_run, record, result
from support.toy_models import ALONE, load_toy, logits, rows, toy

TIMED = """
import peftkit.training.packing as packing
packing.MIN_OPERATIONS, packing.MIN_PASSES = 0.0, {fewest}
packing.time_pass = lambda recipe, made, rows: 1.0 if made.batcher.packed else {seconds}
"""
"""Code that sets the time of a padded batch, relative to a packed one."""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of measurements for this test only."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "MIN_OPERATIONS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    """The directory of a run that has begun."""
    recipe, source = toy(), find_model("tiny-bert")
    begun = RunDir(tmp_path / "run")
    begun.begin(recipe, source, source)
    return begun


def timing(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[str]:
    """Replace the timing of each layout by `seconds`; returns the list of those timed."""
    seen: list[str] = []
    names = {attention: name for name, attention in packing.ATTENTION.items()}

    def time_pass(_: Recipe, made: LoadedModel, chosen: Any) -> float:
        module: Any = made.module
        seen.append(names[module.config._attn_implementation])
        assert made.batcher.packed == (seen[-1] != "padded") and len(chosen) > 0
        return seconds[seen[-1]]

    monkeypatch.setattr(packing, "time_pass", time_pass)
    return seen


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({"packed": 100.0, "packed_sdpa": 104.0, "padded": 90.0}, "packed"),
        ({"packed": 100.0, "packed_sdpa": 106.0, "padded": 90.0}, "packed_sdpa"),
        ({"packed": 100.0, "packed_sdpa": 120.0, "padded": 180.0}, "padded"),
        ({"packed": 100.0, "padded": 101.0}, "packed"),
    ],
)
def test_another_engine_must_be_faster_by_a_margin(speeds: Any, chosen: str) -> None:
    assert fastest_engine(speeds) == chosen


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-gpt2"])
def test_all_engines_give_the_same_to_rounding(model: str) -> None:
    made = load_toy(toy(model))
    examples = rows(model)["test"]
    first = logits(made, examples)
    for name in ("packed_sdpa", "padded", "packed"):
        on = with_engine(made, name)
        assert on.batcher.packed == (name != "padded")
        torch.testing.assert_close(logits(on, examples), first, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(on, examples), first)
    alone = load_toy(toy(model, "training.packing=off"))
    assert torch.equal(logits(with_engine(made, "padded"), examples), logits(alone, examples))


def test_engines_take_turns_on_batches_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = timing(monkeypatch, packed=1.0, packed_sdpa=0.5, padded=2.0)
    made, train = load_toy(toy()), rows("tiny-bert")["train"]
    speeds = measure_engines(toy("tiny-bert", "training.batch_size=8"), made, train, 4)
    assert seen == ["packed", "packed_sdpa", "padded"] * 3
    assert speeds["packed_sdpa"] == 2 * speeds["packed"] == 4 * speeds["padded"]
    batches = list(sample_micro_batches(toy("tiny-bert", "training.batch_size=8"), train, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert len({str(batch) for batch in batches}) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_weights_gradients_and_random_state_alone(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    recipe = toy("tiny-bert", "training.batch_size=8", "strategy.dropout=0.2")
    made = load_toy(recipe)
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    state = torch.random.get_rng_state()
    if fails:
        real = packing.time_pass

        def failing(recipe: Recipe, made: LoadedModel, chosen: Any) -> float:
            if not made.batcher.packed:
                raise RuntimeError("in the midst")
            return real(recipe, made, chosen)

        monkeypatch.setattr(packing, "time_pass", failing)
        with pytest.raises(RuntimeError, match="in the midst"):
            measure_engines(recipe, made, rows("tiny-bert")["train"], 4)
    else:
        speeds = measure_engines(recipe, made, rows("tiny-bert")["train"], 4)
        assert all(speed > 0 and math.isfinite(speed) for speed in speeds.values())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in made.module.parameters())
    module: Any = made.module
    assert module.config._attn_implementation == "peftkit_packed"
    for name, value in made.module.state_dict().items():
        assert torch.equal(value, before[name])


def chosen(recipe: Recipe, folder: RunDir) -> Any:
    return choose_engine(recipe, load_toy(recipe), rows("tiny-bert")["train"], 4, folder, ALONE)


def test_a_choice_holds_for_other_seeds_and_rates_and_not_for_other_shapes(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, folder: RunDir
) -> None:
    long = ("training.batch_size=8", "training.epochs=20")
    timing(monkeypatch, packed=1.0, packed_sdpa=1.0, padded=0.5)
    first = chosen(toy("tiny-bert", *long), folder)
    assert first.used == "padded" and first.reason == "the fastest as measured"
    seen = timing(monkeypatch, packed=1.0, packed_sdpa=0.5, padded=1.0)
    again = chosen(toy("tiny-bert", *long, "training.seed=3", "training.lr=0.1"), folder)
    assert again.used == "padded" and again.reason == "the fastest as measured earlier"
    assert again.tokens_per_second == first.tokens_per_second and not seen
    other = chosen(toy("tiny-bert", *long, "data.max_length=16"), folder)
    assert other.used == "packed_sdpa" and seen
    assert len(list(own_cache.rglob("engine-*.json"))) == 2


def test_small_and_short_runs_are_packed_and_never_timed(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, folder: RunDir
) -> None:
    seen = timing(monkeypatch, packed=1.0, packed_sdpa=1.0, padded=0.1)
    short = toy("tiny-bert", "training.batch_size=8", "training.steps=49")
    assert num_passes(short, 80, 4, ALONE) == 98
    assert chosen(short, folder).reason == "too few steps to measure"
    monkeypatch.setattr(packing, "MIN_OPERATIONS", 1e10)
    small = chosen(toy("tiny-bert", "training.epochs=500"), folder)
    assert (small.used, small.reason) == ("packed", "too small to be timed")
    on = chosen(toy("tiny-bert", "training.packing=on", "training.epochs=500"), folder)
    assert (on.used, on.reason) == ("packed", "training.packing=on")
    off = chosen(toy("tiny-bert", "training.packing=off"), folder)
    assert off.used == "padded" and not seen and not list(own_cache.rglob("engine-*"))


def test_a_run_goes_on_as_it_began_whatever_is_measured_later(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, folder: RunDir
) -> None:
    recipe = toy("tiny-bert", "training.batch_size=8", "training.epochs=20")
    made, train = load_toy(recipe), rows("tiny-bert")["train"]
    timing(monkeypatch, packed=1.0, packed_sdpa=1.0, padded=0.5)
    first = select_engine(recipe, made, train, 4, folder, ALONE)
    for path in own_cache.rglob("engine-*.json"):
        path.unlink()
    timing(monkeypatch, packed=0.1, packed_sdpa=1.0, padded=1.0)
    assert select_engine(recipe, made, train, 4, folder, ALONE) == first
    folder.describe(engine=None)
    assert select_engine(recipe, made, train, 4, folder, ALONE).used == "packed"


def settings_of(cache: Path) -> Mapping[str, str]:
    return {"PEFTKIT_CACHE": str(cache)}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_padded_run_that_was_killed_ends_as_one_that_was_not(
    zygote: Zygote, tmp_path: Path, ranks: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    slow, fast = (TIMED.format(fewest=1, seconds=seconds) for seconds in (9.0, 0.1))
    job: dict[str, Any] = {"ranks": ranks, "environment": settings_of(tmp_path / "cache")}
    ended = zygote.run(whole, "training.save_steps=4", before=fast, **job)
    assert set(ended.codes) == {0} and ended.said.count("padded batches are used") == 1
    assert record(whole)["engine"]["used"] == "padded"
    assert record(whole)["cost"]["padding_share"] > 0
    ended = zygote.run(killed, "training.save_steps=4", before=fast + killed_at(6), **job)
    assert set(ended.codes) == {-signal.SIGKILL}
    for path in (tmp_path / "cache").rglob("engine-*.json"):
        path.unlink()
    ended = zygote.run(killed, "training.save_steps=4", before=slow, **job)
    assert set(ended.codes) == {0} and "resuming at step 4" in ended.said
    assert record(killed)["engine"]["used"] == "padded"
    assert result(killed) == result(whole)


@pytest.mark.slow
def test_a_run_on_another_engine_is_reloaded_on_it_too(zygote: Zygote, tmp_path: Path) -> None:
    before = TIMED.format(fewest=1, seconds=0.1)
    ended = zygote.run(
        tmp_path,
        "training.proof=full",
        before=before,
        environment=settings_of(tmp_path / "cache"),
    )
    assert ended.code == 0, ended.said
    found = record(tmp_path)
    assert found["engine"]["used"] == "padded" and found["proof"]["reload_difference"] <= 1e-5
    from peftkit.inference.predictor import load_run

    assert not load_run(only_run(tmp_path))[1].batcher.packed
    assert measurements.find("engine") is None
