"""Components are found by kind, those of plug-ins too, and validated strictly."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.errors import RecipeError
from peftkit.registry import Settings, parse_settings
from peftkit.strategies.base import Strategy
from peftkit.tasks.base import Task
from support.commands import peftkit, run_py

IA3 = '''
"""IA3: rescale keys, values and the feed-forward by learned vectors."""
from typing import ClassVar, Literal
from peftkit.strategies import Strategy

class IA3(Strategy):
    """Keys, values and the feed-forward are rescaled by learned vectors."""

    kind: Literal["rescale"] = "rescale"
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to rescale."""
    default_lr: ClassVar[float] = 5e-3

    def adapt(self, model, task):
        from peft import IA3Config, get_peft_model
        config = IA3Config(task_type=task.peft_type, target_modules="all-linear")
        return get_peft_model(model, config)
'''


class Inner(Settings):
    size: PositiveInt | None = None


class Sample(Settings):
    count: PositiveInt = 1
    share: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    rate: PositiveFloat | None = 0.5
    every: PositiveInt | Literal["epoch", "never"] = "epoch"
    names: list[str] | Literal["auto"] = "auto"
    pair: tuple[int, int] = (1, 2)
    where: Path = Path()
    inner: Inner = Inner()
    extra: dict[str, int] = Field(default_factory=dict)


def faults(value: object) -> dict[str, str]:
    with pytest.raises(RecipeError) as raised:
        parse_settings(Sample, value, "sample")
    return {fault.where: fault.what for fault in raised.value.faults}


def test_a_kind_is_found_by_its_name_and_a_string_is_a_kind() -> None:
    assert list(Strategy.kinds()) == sorted(Strategy.kinds())
    assert {"adapter", "frozen", "full", "lora"} <= set(Strategy.kinds())
    assert Strategy.parse("lora", "strategy") == Strategy.parse({"kind": "lora"}, "strategy")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("lorra", "no strategy is called 'lorra' - did you mean 'lora'?"),
        (3, "should be the name of a strategy, or a mapping with its 'kind' (got 3)"),
        (None, "should be the name of a strategy, or a mapping with its 'kind' (got null)"),
        ({"kind": ["lora"]}, "no strategy is called ['lora'] - did you mean 'lora'?"),
    ],
)
def test_a_value_without_a_known_kind_is_refused(value: object, what: str) -> None:
    with pytest.raises(RecipeError) as raised:
        Strategy.parse(value, "strategy")
    assert [str(fault) for fault in raised.value.faults] == [f"strategy: {what}"]


def test_a_mapping_without_a_kind_is_answered_with_the_kinds() -> None:
    with pytest.raises(RecipeError, match=r"has no 'kind' - choose from .*question_answering, reg"):
        Task.parse({"metric": "f1"}, "task")


def test_a_union_shows_one_fault_that_names_all_its_branches() -> None:
    assert faults({"share": 2, "every": 0, "names": 3}) == {
        "sample.share": "input should be less than 1 or 'auto' (got 2)",
        "sample.every": "input should be greater than 0 or 'epoch' or 'never' (got 0)",
        "sample.names": "should be a list or 'auto' (got 3)",
    }


@pytest.mark.parametrize("value", [True, "8", 8.0, 0, -1, [1], None])
def test_only_a_positive_integer_is_accepted(value: object) -> None:
    assert list(faults({"count": value})) == ["sample.count"]


@pytest.mark.parametrize("value", [True, "0.5"])
def test_neither_a_boolean_nor_a_string_is_a_number(value: object) -> None:
    assert list(faults({"rate": value})) == ["sample.rate"]


def test_nested_faults_have_their_path_and_the_nearest_setting() -> None:
    found = faults({"inner": {"sise": 1}, "extra": {"a": "b"}, "count": {"x": 3}})
    assert found["sample.inner.sise"] == "no such setting - did you mean 'size'?"
    assert found["sample.extra.a"] == "input should be a valid integer (got 'b')"
    assert found["sample.count"] == "input should be a valid integer (got {'x': 3})"


def test_a_value_instead_of_a_mapping_is_refused_in_terms_of_yaml() -> None:
    assert faults({"inner": 3}) == {"sample.inner": "should be a mapping (got 3)"}


def test_types_that_yaml_lacks_are_converted() -> None:
    read = parse_settings(Sample, {"pair": [3, 4], "where": "a/b", "rate": 2}, "")
    assert (read.pair, read.where, read.rate) == ((3, 4), Path("a/b"), 2.0)


def test_python_values_are_accepted() -> None:
    read = parse_settings(Sample, {"inner": Inner(size=3), "where": Path("x"), "pair": (5, 6)}, "")
    assert (read.inner.size, read.where, read.pair) == (3, Path("x"), (5, 6))


def test_settings_are_equal_after_a_round_trip_also_where_null_replaces_a_default() -> None:
    for given in (Sample(), Sample(rate=None), Sample(inner=Inner(size=2), pair=(7, 8))):
        assert parse_settings(Sample, given.to_dict(), "") == given
    assert "rate" in Sample(rate=None).to_dict() and Sample().to_dict()["inner"] == {}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A directory with a plug-in, broken plug-ins, and two whose names are used twice."""
    package = tmp_path / "my_lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "strategies.py").write_text(IA3)
    (package / "broken.py").write_text("import no_such_library\n")
    (package / "stops.py").write_text("raise SystemExit(3)\n")
    (package / "shadow.py").write_text(IA3.replace('"rescale"', '"dora"'))
    (package / "clash.py").write_text(IA3.replace('"rescale"', '"lora"'))
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    text = "base: _tiny\nplugins: [my_lab.strategies]\nstrategy: rescale\n"
    (recipes / "rescale_tiny.yaml").write_text(text)
    return tmp_path


def run_in(lab: Path, *arguments: str, door: Any = peftkit) -> tuple[int, str]:
    done = door(*arguments, cwd=lab, PYTHONPATH=str(lab))
    return done.returncode, done.stdout + done.stderr


def test_a_strategy_in_one_file_of_a_plug_in_is_shown_with_its_settings(lab: Path) -> None:
    code, text = run_in(lab, "show", "rescale_tiny")
    assert code == 0
    assert 'strategy.targets\t"auto"\tdefault' in text
    assert 'strategy.kind\t"rescale"\trecipes/rescale_tiny.yaml' in text
    assert "default of rescale: 0.005" in text
    assert 'plugins\t["my_lab.strategies"]\trecipes/rescale_tiny.yaml' in text


def test_a_plug_in_is_listed_and_in_the_schema(lab: Path) -> None:
    _, text = run_in(lab, "list", "strategies", "--plugin", "my_lab.strategies")
    about = "Keys, values and the feed-forward are rescaled by learned vectors."
    assert f'rescale\t{about}\ttargets="auto"' in text
    _, schema = run_in(lab, "schema", "--plugin", "my_lab.strategies")
    assert '"rescale"' in schema and "Layers to rescale." in schema


def test_errors_know_the_names_and_settings_of_a_plug_in(lab: Path) -> None:
    _, text = run_in(lab, "recipe=rescale_tiny", "strategy=rescalee", door=run_py)
    assert (
        "strategy (command line): no strategy is called 'rescalee' - did you mean 'rescale'?"
        in text
    )
    _, text = run_in(lab, "recipe=rescale_tiny", "strategy.target=[a]", door=run_py)
    assert "strategy.target (command line): no such setting - did you mean 'targets'?" in text


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("my_lab.broken", "No module named 'no_such_library') - fix or remove it"),
        ("my_lab.stops", "(SystemExit: 3) - fix or remove it"),
        ("my_lab.gone", "install it, or put its folder on PYTHONPATH"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_the_only_fault(
    lab: Path, module: str, what: str
) -> None:
    code, text = run_in(lab, "show", "rescale_tiny", f"plugins=[{module}]", "strategy=nope")
    assert code == 2
    assert (
        f"plugins (command line): plug-in '{module}' cannot be imported (" in text and what in text
    )
    assert "no strategy is called" not in text and "Traceback" not in text


def test_a_kind_that_is_anothers_alias_is_refused(lab: Path) -> None:
    code, text = run_in(lab, "show", "rescale_tiny", "plugins=[my_lab.shadow]", "strategy=dora")
    assert code == 2
    assert "'dora' is an alias of 'lora' and of 'dora' - rename one" in text


def test_two_classes_of_one_kind_are_refused(lab: Path) -> None:
    code, text = run_in(lab, "list", "strategies", "--plugin", "my_lab.clash")
    assert code == 2
    assert "my_lab.clash.IA3 and peftkit.strategies.lora.Lora are both called 'lora'" in text


def test_an_installed_plug_in_that_does_not_import_is_named_once(lab: Path) -> None:
    meta = lab / "my_lab-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[peftkit.plugins]\nlab = my_lab.broken\n")
    code, text = run_in(lab, "recipe=lora_tiny", door=run_py)
    assert code == 2
    assert text.count("the entry point 'lab': plug-in 'my_lab.broken' cannot be imported") == 1
    assert "no strategy is called" not in text
    (meta / "entry_points.txt").write_text("[peftkit.plugins]\nlab = my_lab.strategies\n")
    assert "rescale" in run_in(lab, "list", "strategies")[1]
