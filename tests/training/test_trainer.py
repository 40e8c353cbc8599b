"""Training with peftkit equals a plain training loop: the same losses, however batches are
split."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import support.plain_loop as plain_loop
from peftkit.config.recipe import Recipe
from peftkit.training.integrity import reason_unchanged
from peftkit.training.trainer import PeftTrainer
from support.run_processes import Ended, Zygote, logged, losses, only_run, record, tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "lora_tiny.json"
FP32 = ("training.precision=fp32", "training.dropout=0")


# peft 0.21 asks for a property that transformers 5.23 deprecates
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_plain_loop_gives_the_golden_losses() -> None:
    torch.set_num_threads(1)
    recipe = plain_loop.golden_recipe()
    found = plain_loop.losses(recipe, *plain_loop.inputs(recipe))
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), abs=2e-4)


@pytest.mark.slow
def test_lora_tiny_gives_the_golden_losses(zygote: Zygote, tmp_path: Path) -> None:
    as_shipped = ("data.rows=240", "training.batch_size=16", "training.precision=fp32")
    assert zygote.run(tmp_path, *as_shipped).code == 0
    assert losses(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text()), abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["strategy=lora", "strategy=full"])
def test_accumulation_gives_the_steps_of_the_big_batch(
    zygote: Zygote, tmp_path: Path, strategy: str
) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    common = (strategy, *FP32, "training.keep=last", "training.steps=10", "training.lr=0.001")
    for folder, size in ((big, 8), (small, 2)):
        folder.mkdir()
        assert zygote.run(folder, *common, f"training.micro_batch_size={size}").code == 0
    assert losses(small) == pytest.approx(losses(big), rel=1e-5)
    one, other = (weights(only_run(folder) / "artifact") for folder in (big, small))
    for name in one:
        if reason_unchanged(
            name
        ):  # a gradient of zero is rounding alone, which Adam blows up to a step
            continue
        assert torch.allclose(one[name], other[name], atol=1e-5), name
    worlds = [record(folder)["world"]["micro_batch_size"] for folder in (big, small)]
    assert worlds == [8, 2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: torch.frombuffer(bytearray(content), dtype=torch.float32)
        for name, (kind, content) in tensors(folder).items()
        if kind == "F32"
    }


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 100),
)
def test_every_example_of_a_step_counts_the_same_however_it_is_cut(
    cuts: list[int], smoothing: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = sum(cuts)
    logits = torch.randn(size, 3, generator=generator)
    labels = torch.randint(3, (size,), generator=generator)
    recipe = Recipe.load("lora_tiny", f"training.label_smoothing={smoothing}")
    loop: Any = SimpleNamespace(recipe=recipe, training_hook=None)
    parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
    total = sum(float(PeftTrainer.loss(loop, SimpleNamespace(logits=x), y, size)) for x, y in parts)
    whole = float(cross_entropy(logits, labels, label_smoothing=smoothing))
    assert total == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_smoothed_labels_are_what_is_trained_on(zygote: Zygote, tmp_path: Path) -> None:
    settings = (*FP32, "training.label_smoothing=0.9", "training.steps=3")
    assert zygote.run(tmp_path, *settings).code == 0
    # almost uniform targets: the loss cannot fall below what they spread over two labels
    low, high = 0.05, 0.95
    assert min(losses(tmp_path)) > -(high * math.log(high) + low * math.log(low))


REFUSED = [
    (("data.rows=20", "training.batch_size=16"), "is more than the 14 training examples - use"),
    (("data.validation=0", "training.patience=2"), "needs a validation split, and there is none"),
    (("training.trainer.seed=3",), "training.trainer: seed is set by peftkit - remove it"),
    (("training.trainer.sede=3",), "training.trainer: TrainingArguments rejects it"),
    (("training.trainer.optim=nosuch",), "training.trainer: TrainingArguments rejects it"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_cannot_be_trained_is_refused(
    zygote: Zygote, tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    ended = zygote.run(tmp_path, *given)
    assert ended.code == 2, ended.said
    assert said in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["strategy=lora", "strategy=full"])
def test_without_a_validation_split_the_last_weights_are_scored(
    zygote: Zygote, tmp_path: Path, strategy: str
) -> None:
    ended = zygote.run(tmp_path, strategy, "data.validation=0", "training.steps=6")
    ends_well(ended)
    found = record(tmp_path)
    assert found["validation"] == {}
    assert found["scores"]["accuracy"]["n"] == 24
    assert not list((only_run(tmp_path) / "checkpoints").glob("best*"))


@pytest.mark.slow
def test_without_evaluations_and_test_rows_there_are_no_scores(
    zygote: Zygote, tmp_path: Path
) -> None:
    settings = ("data.test=0", "training.evaluate=never", "training.steps=6")
    ends_well(zygote.run(tmp_path, *settings, "training.proof=full"))
    found = record(tmp_path)
    assert (found["scores"], found["baseline"], found["validation"]) == ({}, {}, {})
    assert found["proof"]["reload_difference"] <= 1e-5


@pytest.mark.slow
def test_a_score_that_is_undefined_is_null_and_no_crash(zygote: Zygote, tmp_path: Path) -> None:
    before = (
        "from peftkit.tasks.text_classification import TextClassification\n"
        "real = TextClassification.score\n"
        "def score(self, *given, **named):\n"
        "    found = real(self, *given, **named)\n"
        "    undefined = found.scores['accuracy'].model_copy(update={'value': None})\n"
        "    found.scores['accuracy'] = undefined\n"
        "    return found\n"
        "TextClassification.score = score\n"
    )
    settings = ("training.report_to=[tensorboard]", "training.patience=2", "training.evaluate=2")
    ended = zygote.run(tmp_path, *settings, before=before)
    ends_well(ended)
    assert "validation score undefined" in ended.said
    found = record(tmp_path)
    assert found["validation"]["score"] is None
    evaluated = [line for line in logged(tmp_path) if "eval_loss" in line]
    lowest = min(evaluated, key=lambda line: line["eval_loss"])
    assert found["validation"]["step"] == lowest["step"]
    assert lowest["step"] > evaluated[0]["step"]  # not the first for want of scores
    assert list(only_run(tmp_path).glob("tensorboard/**/events.out.*"))


def ends_well(ended: Ended) -> None:
    assert ended.code == 0, ended.said
