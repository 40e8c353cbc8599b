"""The fitted state of a task is kept when a run is resumed, saved, loaded and merged."""

import json
from pathlib import Path

import pytest

from support.commands import ROOT
from support.run_processes import Zygote, command, killed_at, only_run

TASK = """
from typing import Literal
from peftkit.tasks.text_classification import TextClassification

class Picky(TextClassification):
    kind: Literal["picky"] = "picky"
    fitted_on_validation = ("threshold",)

    def fit_on_train(self, splits):
        return {"rows": len(splits.train)}

    def fit_on_validation(self, predictions, given):
        assert given.fitted_state == {"rows": len(given.train or range(self.fitted_state["rows"]))}
        return {"threshold": float(predictions.probabilities[:, 1].mean())}

    def fitted_state_notes(self, state):
        return (f"learned {sorted(state)}",)

    def answers(self, predictions, given):
        limit = given.fitted_state["threshold"]
        return [{"above": bool(row[1] > limit), "limit": limit} for row in predictions.outputs]

    def loss(self, logits, labels, smoothing):
        assert self.fitted_state["rows"] > 0
        return super().loss(logits, labels, smoothing)
"""


@pytest.fixture(scope="module")
def finished(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One run whole, and one that is killed once all was trained, and resumed."""
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    for folder in (whole, cut):
        (folder / "picky.py").write_text(TASK)
        here = f"import sys; sys.path.insert(0, {str(folder)!r})"
        settings = ("plugins=[picky]", "task=picky", "training.epochs=1")
        if folder is cut:
            died = zygote.run(folder, *settings, before=f"{here}; {killed_at(6)}")
            assert died.code == -9, died.said
        done = zygote.run(folder, *settings, before=here)
        assert done.code == 0, done.said
    return only_run(whole), only_run(cut)


def fitted(run: Path) -> dict[str, float]:
    return json.loads((run / "run.json").read_text())["fitted_state"]  # type: ignore[no-any-return]


def test_fitted_state_is_in_the_run_and_its_artifact(
    finished: tuple[Path, Path],
) -> None:
    run, _ = finished
    said = fitted(run)
    record = json.loads((run / "record.json").read_text())
    assert said["rows"] == record["rows"]["train"] and 0 < said["threshold"] < 1
    assert "learned ['rows', 'threshold']" in record["notes"]
    assert json.loads((run / "artifact" / "artifact.json").read_text())["fitted_state"] == said
    assert (
        json.loads((run / "artifact" / "config.json").read_text())["peftkit_fitted_state"] == said
    )


def test_a_resumed_run_learns_the_same(finished: tuple[Path, Path]) -> None:
    whole, cut = finished
    assert fitted(whole) == fitted(cut)


def test_predictions_and_the_merged_checkpoint_know_it(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = finished
    to = tmp_path / "merged"
    code = (
        "import json, peftkit\n"
        f"print('said', json.dumps(peftkit.predict({str(run)!r}, ['the goal'])))\n"
        f"peftkit.merge({str(run)!r}, to={str(to)!r}, verify='off')"
    )
    places = {"PYTHONPATH": f"{run.parents[1]}:{ROOT}"}
    done = command(tmp_path, "-c", code, environment=places, seconds=900)
    assert done.code == 0, done.said
    (line,) = [line for line in done.said.splitlines() if line.startswith("said ")]
    assert json.loads(line.removeprefix("said "))[0]["limit"] == fitted(run)["threshold"]
    assert json.loads((to / "config.json").read_text())["peftkit_fitted_state"] == fitted(run)
