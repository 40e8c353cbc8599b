"""What a comparison's file may say, what it comes to, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from peftkit.comparison.jobs import Place, RateJob, RunJob, jobs_of
from peftkit.comparison.settings import Budget, Comparison, load_comparison
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.storage.yaml import dump_yaml

TINY: dict[str, Any] = {"recipe": "lora_tiny", "strategies": ["lora"], "seeds": 2}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(dump_yaml({**TINY, **changes}))
    return path


def names(folder: Path, *settings: str, **changes: Any) -> list[str]:
    return [way.name for way in load_comparison(written(folder, **changes), settings).ways]


def refused(folder: Path, *settings: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_comparison(written(folder, **changes), settings)
    return str(caught.value)


def test_full_tuning_and_the_linear_probe_are_in_every_comparison(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path))
    assert [way.name for way in found.ways] == ["lora", "full", "linear_probe"]
    assert found.added == ("full", "linear_probe")
    assert names(tmp_path, strategies=["linear_probe", "full"]) == ["linear_probe", "full"]


def test_every_strategy_stands_on_every_base_unless_it_names_its_own(tmp_path: Path) -> None:
    entries = ["full", "linear_probe", {"kind": "lora", "r": 4, "quantize": "4bit"}]
    assert names(tmp_path, strategies=entries, quantize=["none", "8bit"]) == [
        "full",
        "full_8bit",
        "linear_probe",
        "linear_probe_8bit",
        "lora_r-4_4bit",
    ]


def test_what_a_strategy_refuses_of_a_base_is_a_row_and_no_error(tmp_path: Path) -> None:
    ways = load_comparison(written(tmp_path, quantize=["8bit"])).ways
    reasons = {way.name: way.refused for way in ways}
    assert reasons["lora_8bit"] is None
    assert "quantize=none" in str(reasons["full_8bit"])


def test_the_same_strategy_twice_has_two_names(tmp_path: Path) -> None:
    twice = [{"kind": "lora", "r": 4}, {"kind": "lora", "r": 4}, "full", "linear_probe"]
    assert names(tmp_path, strategies=twice)[:2] == ["lora_r-4", "lora_r-4-2"]


def test_a_combination_is_a_strategy_too(tmp_path: Path) -> None:
    assert names(tmp_path, strategies=[["adapter", "bitfit"]])[0] == "adapter+bitfit"


def test_settings_reach_the_comparison_or_its_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, settings={"training": {"epochs": 5}, "data": {"max_length": 16}})
    found = load_comparison(path, ["seeds=[3,5]", "budget.trials=1", "training.epochs=7"])
    assert found.comparison.seed_list == [3, 5]
    assert found.comparison.budget == Budget(trials=1)
    assert {way.recipe.training.epochs for way in found.ways} == {7}
    assert {way.recipe.data.max_length for way in found.ways} == {16}
    assert next(way.recipe.name for way in found.ways) == "lora_small"


def test_nothing_of_the_recipes_own_strategy_stays_behind(tmp_path: Path) -> None:
    way = load_comparison(written(tmp_path)).ways[0]  # lora_tiny has r: 4
    assert way.recipe.strategy.plain()["r"] == 8


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, strategies=["lorra", {"kind": "lora", "r": 0}, "full"])
    assert "did you mean 'lora'?" in said
    assert "strategy.r" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"seeds": []}, "names no seed"),
        ({"strategies": []}, "strategies"),
        ({"strateges": ["lora"]}, "did you mean 'strategies'?"),
        ({"quantize": ["5bit"]}, "no quantization is called '5bit'"),
        ({"recipe": "lora_tinny"}, "did you mean 'lora_tiny'?"),
        ({"budget": {"factor": 1.0}}, "budget.factor"),
        ({"settings": {"training": {"lr": 1e-3}}}, "favors some"),
        ({"settings": {"data": {"max_lenght": 3}}}, "max_length"),
    ],
)
def test_mistakes_are_told_with_what_to_type(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refused(tmp_path, **changes)


def test_a_misspelt_setting_is_sought_in_the_comparison_and_its_recipe(tmp_path: Path) -> None:
    said = refused(tmp_path, "sedds=3", "trainig.epochs=1")
    assert "did you mean 'seeds'?" in said
    assert "did you mean 'training'?" in said


def test_a_file_that_is_not_there_names_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"benchmarks/imdb\.yaml"):
        load_comparison(tmp_path / "nothing.yaml")


def test_no_comparison_is_made_on_a_stand_in_unless_it_says_so(tmp_path: Path) -> None:
    def stand_in(*settings: str, **changes: Any) -> object:
        path = written(tmp_path, recipe="lora_imdb", **changes)
        return load_comparison(path, settings).ways[0].recipe.data.fallback  # type: ignore[attr-defined]

    assert stand_in() == "forbid"
    assert stand_in("data.fallback=movie_reviews") == "movie_reviews"
    assert stand_in(settings={"data": {"fallback": "movie_reviews"}}) == "movie_reviews"


def test_seeds_are_counted_from_zero() -> None:
    assert Comparison(recipe="x", strategies=["lora"], seeds=3).seed_list == [0, 1, 2]


def test_one_run_a_strategy_proves_that_its_artifact_loads(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path, seeds=3), ["budget.trials=0"])
    recipe = found.ways[0].recipe
    place = Place(tmp_path, find_model(recipe.model), recipe.data.resolve(), {})
    runs = [job for job in jobs_of(found.ways, found.comparison, place) if isinstance(job, RunJob)]
    proofs = {job.name: job.recipe.training.proof for job in runs if job.way.name == "lora"}
    assert proofs == {"lora, seed 0": "full", "lora, seed 1": "run", "lora, seed 2": "run"}


def test_folds_take_the_place_of_seeds_and_each_has_its_own_search(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path, folds=3), ["budget.trials=2"])
    recipe = found.ways[0].recipe
    place = Place(tmp_path, find_model(recipe.model), recipe.data.resolve(), {})
    jobs = jobs_of(found.ways, found.comparison, place)
    searches = [job for job in jobs if isinstance(job, RateJob)]
    assert [job.name for job in searches if job.way.name == "lora"] == [
        "rate of lora, fold 0",
        "rate of lora, fold 1",
        "rate of lora, fold 2",
    ]
    assert len({job.key for job in searches}) == len(searches) == 9
    assert [job.recipe.data.fold for job in searches if job.way.name == "full"] == [0, 1, 2]
    runs = [job for job in jobs if isinstance(job, RunJob)]
    assert {job.name for job in runs if job.way.name == "full"} == {
        f"full, seed 0, fold {fold}" for fold in range(3)
    }
    assert all(job.rate in searches and job.rate.fold == job.fold for job in runs)
