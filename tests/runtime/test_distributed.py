"""Ranks, threads and precision: a run has the same result with any number of processes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import RecipeError, RunError
from peftkit.preprocessing.batching import Order
from peftkit.runtime.distributed import (
    check_launcher_precision,
    environment_without_launcher,
    share_of_batch,
    threads_of_rank,
)
from support.run_processes import (
    ENVIRONMENT,
    REPOSITORY,
    SMALL,
    Zygote,
    command,
    losses,
    only_run,
    record,
    words,
)

RUN = str(REPOSITORY / "peftkit" / "run.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", RUN)
EXACT = ("training.precision=fp32", "training.micro_batch_size=2", "training.steps=12")


@pytest.fixture(scope="module")
def alone(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, in fp32."""
    folder = tmp_path_factory.mktemp("alone")
    assert zygote.run(folder, *EXACT).code == 0
    return folder


@pytest.mark.slow
def test_two_ranks_of_torchrun_take_the_steps_of_one(tmp_path: Path, alone: Path) -> None:
    ended = command(tmp_path, *TORCHRUN, "recipe=lora_tiny", *SMALL, *EXACT)
    assert ended.code == 0, ended.said
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    two, one = record(tmp_path), record(alone)
    assert (two["world"]["ranks"], two["world"]["sharding"]) == (2, "ddp")
    assert two["digest"] == one["digest"]
    assert two["cost"]["tokens"] == one["cost"]["tokens"]
    assert two["scores"] == one["scores"]
    assert two["baselines"] == one["baselines"] and "nearest centroid" in one["baselines"]
    assert ended.said.count("accuracy, majority class") == 1


@pytest.mark.slow
def test_full_tuning_takes_the_same_steps_on_two_ranks(zygote: Zygote, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    settings = ("strategy=full", "training.dropout=0", "training.lr=0.001", *EXACT)
    assert zygote.run(one, *settings).code == 0
    assert set(zygote.run(two, *settings, ranks=2).codes) == {0}
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("length_grouped", [True, False])
@pytest.mark.parametrize("micro", [1, 4])
def test_each_step_has_the_same_examples_on_1_2_and_4_ranks(
    length_grouped: bool, micro: int
) -> None:
    lengths = torch.randint(3, 60, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    for epoch in range(2):
        orders = {
            ranks: steps(Order(lengths, 16, 5, length_grouped), epoch, micro, ranks)
            for ranks in (1, 2, 4)
        }
        assert orders[1] == orders[2] == orders[4]
        assert len(orders[1]) == 203 // 16


def steps(order: Order, epoch: int, micro: int, ranks: int) -> list[list[int]]:
    """The examples of each optimizer step of an epoch, over all ranks, sorted."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    order.set_epoch(epoch)
    shards: list[Any] = [
        list(BatchSamplerShard(BatchSampler(order, micro, drop_last=False), ranks, rank))
        for rank in range(ranks)
    ]
    accumulated = order.batch_size // ranks // micro
    found = []
    for start in range(0, len(shards[0]), accumulated):
        micro_batches = [b for shard in shards for b in shard[start : start + accumulated]]
        found.append(sorted(index for batch in micro_batches for index in batch))
    return found


def test_a_batch_that_ranks_cannot_share_names_the_nearest_that_they_can() -> None:
    assert share_of_batch(32, 4) == 8
    with pytest.raises(RunError, match=r"batch_size=30 is not divisible by 4 ranks - use .*28 or"):
        share_of_batch(30, 4)
    with pytest.raises(RunError, match=r"use training\.batch_size=4$"):
        share_of_batch(3, 4)


@pytest.mark.slow
def test_such_a_batch_is_refused_by_all_ranks_and_printed_once(
    zygote: Zygote, tmp_path: Path
) -> None:
    ended = zygote.run(tmp_path, "training.batch_size=9", ranks=2)
    assert ended.codes == [2, 2]
    assert ended.said.count("error: training.batch_size=9 is not divisible by 2 ranks") == 1
    assert "use training.batch_size=8 or 10" in ended.said
    assert "error" not in ended.others


@pytest.mark.slow
def test_torchrun_prints_an_error_once_and_fails(tmp_path: Path) -> None:
    ended = command(tmp_path, *TORCHRUN, "recipe=lora_tiny", "strategy.rnk=3")
    assert ended.code != 0
    assert ended.said.count("error: recipe 'lora_tiny' cannot run") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_both(zygote: Zygote, tmp_path: Path) -> None:
    before = (
        "import os\n"
        "from peftkit.training.trainer import PeftTrainer\n"
        "real = PeftTrainer.training_step\n"
        "def step(self, *given, **named):\n"
        "    loss = real(self, *given, **named)\n"
        "    if os.environ['RANK'] == '1' and self.state.global_step == 3:\n"
        "        self.last_loss = float('nan')\n"
        "    return loss\n"
        "PeftTrainer.training_step = step\n"
    )
    ended = zygote.run(tmp_path, ranks=2, before=before)
    assert ended.codes == [2, 2]
    assert "is not finite at step 4" in ended.said
    assert record(tmp_path)["status"] == "failed"


@pytest.mark.parametrize(
    ("requested", "wanted"), [("bf16", "fp32"), ("fp16", "fp32"), ("fp16", "bf16"), ("fp8", "bf16")]
)
def test_a_launcher_that_asks_for_another_precision_is_refused(
    monkeypatch: pytest.MonkeyPatch, requested: str, wanted: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", requested)
    with pytest.raises(RecipeError) as refused:
        check_launcher_precision(wanted)
    assert f"the launcher requests {requested}, the recipe {wanted}" in str(refused.value)
    assert "set mixed_precision: 'no'" in str(refused.value)


@pytest.mark.parametrize(
    ("requested", "wanted"), [("no", "bf16"), ("no", "fp32"), ("bf16", "bf16")]
)
def test_no_is_no_opinion_and_the_same_is_no_conflict(
    monkeypatch: pytest.MonkeyPatch, requested: str, wanted: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", requested)
    check_launcher_precision(wanted)


@pytest.mark.slow
def test_a_run_whose_launcher_disagrees_stops_before_it_begins(
    zygote: Zygote, tmp_path: Path
) -> None:
    launcher = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    ended = zygote.run(tmp_path, "training.precision=fp32", environment=launcher)
    assert ended.code == 2
    assert "training.precision: the launcher requests bf16, the recipe fp32" in ended.said
    assert not list((tmp_path / "runs").glob("lora*"))


@pytest.mark.slow
def test_what_the_launcher_agrees_to_is_not_done_as_autocast(
    zygote: Zygote, tmp_path: Path
) -> None:
    before = (
        "from peftkit.training.trainer import PeftTrainer\n"
        "real = PeftTrainer.training_step\n"
        "def step(self, *given, **named):\n"
        "    assert self.accelerator.mixed_precision == 'no'\n"
        "    return real(self, *given, **named)\n"
        "PeftTrainer.training_step = step\n"
    )
    launcher = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    settings = ("training.precision=bf16", "training.steps=2")
    ended = zygote.run(tmp_path, *settings, environment=launcher, before=before)
    assert ended.code == 0, ended.said
    assert record(tmp_path)["world"]["precision"] == "bf16"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_different_lengths(
    zygote: Zygote, tmp_path: Path
) -> None:
    before = (
        "after_step = RecordingCallback.on_step_end\n"
        "def on_step_end(self, args, state, control, **rest):\n"
        "    if state.global_step in (10, 60):\n"
        "        pages = int(open('/proc/self/statm').read().split()[1])\n"
        "        print(f'RESIDENT {pages * 4096 / 2**20}', flush=True)\n"
        "    after_step(self, args, state, control, **rest)\n"
        "RecordingCallback.on_step_end = on_step_end\n"
    )
    settings = ("data.rows=600", "training.precision=bf16", "training.steps=60")
    ended = zygote.run(tmp_path, *settings, "training.evaluate=never", before=before)
    assert ended.code == 0, ended.said
    early, late = map(float, re.findall(r"RESIDENT ([\d.]+)", ended.said))
    # 190 MiB without the limits on the caches of compiled products
    assert late - early < 80


def test_threads_are_this_ranks_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads_of_rank("auto") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert threads_of_rank("auto") == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert threads_of_rank("auto") == 1
    assert threads_of_rank(5) == 5


def test_a_process_that_is_no_rank_sees_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    left = environment_without_launcher()
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"} & left.keys()
    assert left["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_accelerate_launch_runs_it_on_all_cores_and_prints_errors_first(tmp_path: Path) -> None:
    launch = ("-m", "accelerate.commands.launch", "--num_processes", "1", RUN, "recipe=lora_tiny")
    wrong = subprocess.Popen(
        [sys.executable, *launch, "strategy.rnk=3"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    few = ("data.rows=60", "training.steps=2", "training.proof=run")
    ended = command(tmp_path, *launch, *few)
    assert ended.code == 0, ended.said
    assert record(tmp_path)["world"]["threads"] == len(os.sched_getaffinity(0))
    assert (only_run(tmp_path) / "loss.svg").is_file()
    output = words(wrong.communicate(timeout=120)[0])
    assert wrong.returncode == 1
    assert output.index("error: recipe 'lora_tiny' cannot run:") < output.index("Traceback")
    assert "strategy.rnk (command line): no such setting" in output
