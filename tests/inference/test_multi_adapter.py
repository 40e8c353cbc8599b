"""Several runs on one base model: each row predicted by its run, shared weights in memory once."""

from pathlib import Path

import pytest

import peftkit
from peftkit.errors import DataError, RunError
from peftkit.inference.multi_adapter import SharedBase
from support.toy_models import toy

SETTINGS = "training={steps: 3, threads: 1, proof: run, batch_size: 8, lr: 0.02, precision: fp32}"
TEXTS = ["the team had a coach near the stadium", "a bowl of soup", "a goal", "the cook and bread"]
STRATEGIES = {
    "lora": "lora",
    "dora": "dora",
    "adapter": "adapter",
    "houlsby": "{kind: adapter, variant: houlsby}",
}


def made(folder: Path, strategy: str, *more: str) -> Path:
    recipe = toy("tiny-bert", SETTINGS, f"strategy={strategy}", *more)
    before = set(folder.iterdir())
    peftkit.train(recipe, folder)
    return next(path for path in set(folder.iterdir()) - before if path.is_dir())


@pytest.fixture(scope="module", params=["none", "8bit", "4bit"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of four strategies with the same quantization of one base model."""
    folder = tmp_path_factory.mktemp(request.param)
    return [made(folder, each, f"quantize={request.param}") for each in STRATEGIES.values()]


def test_predictions_of_mixed_runs_equal_those_of_each_run_alone(runs: list[Path]) -> None:
    alone = {run.name: peftkit.predict(run, TEXTS) for run in runs}
    assert len({str(said) for said in alone.values()}) == len(runs), "the runs differ"
    shared = SharedBase.load(runs)
    assert shared.runs == [run.name for run in runs]
    for shift in range(len(runs)):
        names = [runs[(index + shift) % len(runs)].name for index in range(len(TEXTS))]
        found = shared.predict(TEXTS, names)
        for index, name in enumerate(names):
            one = peftkit.predict(name_in(runs, name), [TEXTS[index]])[0]
            assert found[index] == {**one, "run": name}
    for run in runs:  # switched: all rows to one
        said = shared.predict(TEXTS, run.name)
        assert [s["probabilities"] for s in said] == [s["probabilities"] for s in alone[run.name]]


def name_in(runs: list[Path], name: str) -> Path:
    return next(run for run in runs if run.name == name)


def test_weights_of_the_base_are_in_memory_once(runs: list[Path]) -> None:
    shared = SharedBase.load(runs)
    modules = [run.loaded.module for run in shared._runs.values()]
    places = [
        {p.data_ptr() for p in module.parameters() if not p.requires_grad} for module in modules
    ]
    lora, dora, pfeiffer, houlsby = places  # PEFT loads its adapters frozen, too
    assert pfeiffer == houlsby and len(pfeiffer) > 10
    assert pfeiffer <= lora and pfeiffer <= dora


def test_unknown_runs_and_other_base_models_are_refused(runs: list[Path], tmp_path: Path) -> None:
    shared = SharedBase.load(runs)
    with pytest.raises(RunError, match="no run 'lora_tini' is loaded - "):
        shared.predict(TEXTS, "lora_tini")
    with pytest.raises(DataError, match="4 texts and 1 runs - name one run per text"):
        shared.predict(TEXTS, [runs[0].name])
    other = made(tmp_path, "lora", "model=tiny-electra")
    with pytest.raises(RunError, match="was trained on another base than"):
        shared.add(other)
