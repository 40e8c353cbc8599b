"""`evaluate:NAME` computes metrics of the evaluate library; their failures are errors of ours."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peftkit.errors import DataError
from peftkit.metrics.evaluate_library import evaluate_metric
from support.run_processes import Zygote, only_run

SCRIPT = """
import datasets
import evaluate

class Hits(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int32")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references):
        hits = sum(p == r for p, r in zip(predictions, references))
        return RESULT
"""


Writer = Callable[[str, str], str]


@pytest.fixture(scope="module")  # as long as Python remembers where `evaluate_modules` lies
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    """Write a metric script whose `_compute` returns the given expression; return its folder."""
    import evaluate

    def write(name: str, result: str) -> str:
        folder = tmp_path_factory.mktemp("scripts") / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(SCRIPT.replace("RESULT", result))
        return str(folder)

    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(modules))
        yield write


def test_evaluate_takes_the_folder_of_a_local_script(script: Writer) -> None:
    folder = script("hits_a", "{'hits': hits / len(references)}")
    assert evaluate_metric(f"evaluate:{folder}", [1, 0, 1, 1], [1, 1, 1, 1]) == 0.75


def test_evaluate_gives_none_for_what_is_not_a_number(script: Writer) -> None:
    name = "evaluate:" + script("hits_b", "{'hits': float('nan')}")
    assert evaluate_metric(name, [1], [1]) is None


def test_evaluate_refuses_a_metric_with_several_numbers(script: Writer) -> None:
    with pytest.raises(DataError, match=r"should give one number \(got low, high\)"):
        evaluate_metric("evaluate:" + script("hits_c", "{'low': 0.1, 'high': hits}"), [1], [1])


def test_evaluate_turns_a_broken_script_into_an_error_of_ours(script: Writer) -> None:
    with pytest.raises(DataError, match=r"evaluate:.*hits_d: ZeroDivisionError"):
        evaluate_metric("evaluate:" + script("hits_d", "{'hits': 1 / 0}"), [1], [1])


def test_evaluate_without_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluate import loading

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(loading, "HubEvaluationModuleFactory", unreachable)
    with pytest.raises(DataError, match=r"evaluate:no_such_metric.*offline, give the folder"):
        evaluate_metric("evaluate:no_such_metric", [1], [1])


def test_a_recipe_trains_and_is_scored_with_a_metric_of_the_library(
    script: Writer, zygote: Zygote, tmp_path: Path
) -> None:
    name = "evaluate:" + script("hits_e", "{'hits': hits / len(references)}")
    settings = (f"task.metric={name}", "training.patience=1", "training.epochs=2")
    done = zygote.run(tmp_path, *settings, "training.evaluate=epoch")
    assert done.code == 0, done.said
    record = json.loads((only_run(tmp_path) / "record.json").read_text())
    score, accuracy = record["scores"][name], record["scores"]["accuracy"]
    assert record["headline"] == name and score["value"] == accuracy["value"]
    assert score["low"] <= score["value"] <= score["high"]
    assert record["validation"]["score"] is not None and name in record["baseline"]
