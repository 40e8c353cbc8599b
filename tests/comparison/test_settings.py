"""Comparison files: their settings, the variants they describe and the mistakes that are found."""

from pathlib import Path
from typing import Any

import pytest

from peftkit.comparison.jobs import RunJob, SearchJob, Workspace, planned_jobs
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
    return [
        variant.name for variant in load_comparison(written(folder, **changes), settings).variants
    ]


def refused(folder: Path, *settings: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_comparison(written(folder, **changes), settings)
    return str(caught.value)


def test_full_tuning_and_the_linear_probe_are_in_every_comparison(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path))
    assert [variant.name for variant in found.variants] == ["lora", "full", "linear_probe"]
    assert found.added == ("full", "linear_probe")
    assert names(tmp_path, strategies=["linear_probe", "full"]) == ["linear_probe", "full"]


def test_every_strategy_runs_with_every_quantization_unless_it_sets_its_own(tmp_path: Path) -> None:
    entries = ["full", "linear_probe", {"kind": "lora", "r": 4, "quantize": "4bit"}]
    assert names(tmp_path, strategies=entries, quantize=["none", "8bit"]) == [
        "full",
        "full_8bit",
        "linear_probe",
        "linear_probe_8bit",
        "lora_r-4_4bit",
    ]


def test_a_strategy_that_is_incompatible_with_a_quantization_is_a_variant_and_no_error(
    tmp_path: Path,
) -> None:
    variants = load_comparison(written(tmp_path, quantize=["8bit"])).variants
    reasons = {variant.name: variant.incompatibility for variant in variants}
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
    assert {variant.recipe.training.epochs for variant in found.variants} == {7}
    assert {variant.recipe.data.max_length for variant in found.variants} == {16}
    assert next(variant.recipe.name for variant in found.variants) == "lora_small"


def test_the_strategy_of_the_recipe_is_replaced(tmp_path: Path) -> None:
    variant = load_comparison(written(tmp_path)).variants[0]  # lora_tiny has r: 4
    assert variant.recipe.strategy.to_dict()["r"] == 8


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, strategies=["lorra", {"kind": "lora", "r": 0}, "full"])
    assert "did you mean 'lora'?" in message
    assert "strategy.r" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": [1, 1]}, "a seed is listed twice"),
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
def test_mistakes_are_reported_with_what_to_type(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(tmp_path, **changes)


def test_a_misspelled_setting_is_looked_up_in_the_comparison_and_its_recipe(tmp_path: Path) -> None:
    message = refused(tmp_path, "sedds=3", "trainig.epochs=1")
    assert "did you mean 'seeds'?" in message
    assert "did you mean 'training'?" in message


def test_a_missing_file_is_reported_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"benchmarks/imdb\.yaml"):
        load_comparison(tmp_path / "nothing.yaml")


def test_fallback_data_are_used_only_if_the_comparison_sets_them(tmp_path: Path) -> None:
    def fallback(*settings: str, **changes: Any) -> object:
        path = written(tmp_path, recipe="lora_imdb", **changes)
        return load_comparison(path, settings).variants[0].recipe.data.fallback  # type: ignore[attr-defined]

    assert fallback() == "forbid"
    assert fallback("data.fallback=movie_reviews") == "movie_reviews"
    assert fallback(settings={"data": {"fallback": "movie_reviews"}}) == "movie_reviews"


def test_seeds_are_counted_from_zero() -> None:
    assert Comparison(recipe="x", strategies=["lora"], seeds=3).seed_list == [0, 1, 2]


def test_one_run_a_strategy_proves_that_its_artifact_loads(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path, seeds=3), ["budget.trials=0"])
    recipe = found.variants[0].recipe
    workspace = Workspace(tmp_path, find_model(recipe.model), recipe.data.resolve(), {})
    runs = [
        job
        for job in planned_jobs(found.variants, found.comparison, workspace)
        if isinstance(job, RunJob)
    ]
    proofs = {job.name: job.recipe.training.proof for job in runs if job.variant.name == "lora"}
    assert proofs == {"lora, seed 0": "full", "lora, seed 1": "run", "lora, seed 2": "run"}


def test_folds_replace_seeds_and_each_has_its_own_search(tmp_path: Path) -> None:
    found = load_comparison(written(tmp_path, folds=3), ["budget.trials=2"])
    recipe = found.variants[0].recipe
    workspace = Workspace(tmp_path, find_model(recipe.model), recipe.data.resolve(), {})
    jobs = planned_jobs(found.variants, found.comparison, workspace)
    searches = [job for job in jobs if isinstance(job, SearchJob)]
    assert [job.name for job in searches if job.variant.name == "lora"] == [
        "learning rate of lora, fold 0",
        "learning rate of lora, fold 1",
        "learning rate of lora, fold 2",
    ]
    assert len({job.key for job in searches}) == len(searches) == 9
    assert [job.recipe.data.fold for job in searches if job.variant.name == "full"] == [0, 1, 2]
    runs = [job for job in jobs if isinstance(job, RunJob)]
    assert {job.name for job in runs if job.variant.name == "full"} == {
        f"full, seed 0, fold {fold}" for fold in range(3)
    }
    assert all(job.search in searches and job.search.fold == job.fold for job in runs)
