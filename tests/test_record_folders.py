"""A record knows the directory of its run, whatever the root and however often it was rerun."""

import json
import pickle
from pathlib import Path

import pytest

import peftkit
from peftkit.errors import RunError
from peftkit.records.record import RunRecord, read_record
from support.toy_models import toy

TEXTS = ["the team had a coach near the stadium", "a bowl of soup"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    """A run and its rerun, below a root that is not `runs`, with different weights."""
    settings = "training={steps: 3, threads: 1, proof: run, batch_size: 8, precision: fp32}"
    root = tmp_path_factory.mktemp("elsewhere")
    recipe = toy("tiny-bert", settings, "strategy=lora")
    first, second = peftkit.train(recipe, root), peftkit.train(recipe, root, rerun=True)
    assert second.digest == first.digest and second.folder_name == f"{first.folder_name}-2"
    return [first, second]


def test_a_record_knows_its_directory_which_its_file_does_not_name(runs: list[RunRecord]) -> None:
    first, second = (run.folder for run in runs)
    assert first is not None and second is not None
    assert second.name == f"{first.name}-2" and second.is_absolute()
    assert "folder" not in str(list(json.loads((second / "record.json").read_text())))
    assert read_record(second / "record.json").folder == second
    assert pickle.loads(pickle.dumps(runs[1])).folder == second
    assert RunRecord.model_validate_json(runs[1].model_dump_json()).folder is None


def test_a_finished_run_is_returned_with_its_directory(runs: list[RunRecord]) -> None:
    first = runs[0].folder
    assert first is not None
    recipe = peftkit.Recipe.load(str(first / "recipe.yaml"))
    assert peftkit.train(recipe, first.parent).folder == first


def test_a_record_is_predicted_merged_exported_and_reported_from_its_own_directory(
    runs: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (run.folder for run in runs)
    assert first is not None and second is not None
    hidden = first.rename(tmp_path / "hidden")  # what is read of the second is not the first's
    try:
        answers = peftkit.predict(runs[1], TEXTS)
        assert answers == peftkit.predict(second, TEXTS)
        with pytest.raises(RunError, match="there is no such directory"):
            peftkit.predict(runs[0], TEXTS)
        shared = peftkit.SharedBase.load([runs[1]])
        assert shared.predict(TEXTS, second.name) == [{**a, "run": second.name} for a in answers]
        merged = peftkit.merge(runs[1], tmp_path / "merged", verify="off")
        assert Path(merged.adapter).parent == second
        peftkit.export(runs[1], tmp_path / "exported", verify="off")
        assert not out_of_reach(peftkit.report(runs[1]).notes)
        assert out_of_reach(peftkit.report(runs[0]).notes)
    finally:
        hidden.rename(first)
    assert not out_of_reach(peftkit.report(runs).notes)


def out_of_reach(notes: list[str]) -> bool:
    return any("its directory is not known" in note for note in notes)


def test_a_shared_base_takes_one_run_of_a_name(runs: list[RunRecord]) -> None:
    with pytest.raises(RunError, match="a run of this name is loaded already"):
        peftkit.SharedBase.load([runs[0], runs[0]])
