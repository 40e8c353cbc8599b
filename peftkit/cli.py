"""The command line: verbs to functions, and errors to one print and exit code 2."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.compose import compose, parse_overrides, recipe_names
from peftkit.errors import PeftkitError, RecipeError, RunStopped
from peftkit.tables import print_rows, record_rows

if TYPE_CHECKING:
    from peftkit.compose import Composition
    from peftkit.recipe import Recipe

FAMILIES = ("recipes", "strategies", "tasks", "data", "quantization", "metrics")


def main(arguments: Sequence[str] | None = None) -> int:
    """`peftkit VERB ...`; returns the exit code."""
    options = parser().parse_args(arguments)
    return guarded(lambda: options.work(options))


def launched(arguments: Sequence[str]) -> int:
    """What `run.py` does: `recipe=NAME key=value ...`, on this rank of any number."""
    flags = [a for a in arguments if a.startswith("--")]
    settings = [a for a in arguments if not a.startswith("--")]

    def work() -> None:
        options = run_parser().parse_args(flags)
        named = [a.partition("=")[2] for a in settings if a.startswith("recipe=")]
        if not named:
            names = ", ".join(recipe_names())
            raise RecipeError(f"no recipe is named - say recipe=NAME, one of {names}")
        rest = [a for a in settings if not a.startswith("recipe=")]
        train_and_show(load(named[-1], rest), options)

    return guarded(work)


def guarded(work: Callable[[], Any]) -> int:
    """Do `work`; a user's mistake is printed once, by rank 0, without a traceback."""
    try:
        work()
        return 0
    except RunStopped as stopped:
        tell(str(stopped))
        return 128 + stopped.signal_number
    except PeftkitError as error:
        tell(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def tell(message: str) -> None:
    """Print a last word, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="peftkit", description="Parameter-efficient fine-tuning.")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, work: Callable[[Any], None], text: str, recipe: bool = True) -> Any:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(work=work)
        if recipe:
            sub.add_argument("recipe", help="a recipe's name or file")
            sub.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
        return sub

    train = verb("train", train_verb, "train, evaluate and record a recipe")
    add_run_options(train)
    train.add_argument("-n", "--ranks", type=int, default=1, help="processes on this machine")
    train.add_argument("--launch", type=Path, help="an accelerate file, as in recipes/launch/")
    show = verb("show", show_verb, "the resolved recipe, with each value's source")
    show.add_argument("--json", action="store_true", help="as JSON")
    planned = verb("plan", plan_verb, "what a run would do; no weights are loaded")
    planned.add_argument("--json", action="store_true", help="as JSON")
    listed = verb("list", list_verb, "recipes, strategies, tasks, data, metrics", recipe=False)
    listed.add_argument("family", nargs="?", choices=FAMILIES, default="recipes")
    listed.add_argument("--json", action="store_true", help="as JSON")
    verb("schema", schema_verb, "the recipes' JSON schema, for editors", recipe=False)
    new = verb("new", new_verb, "look at your data and write a recipe that runs", recipe=False)
    new.add_argument("data", type=Path, help="a csv, tsv, json, jsonl or parquet file, or a folder")
    new.add_argument("--to", type=Path, help="the recipe to write (default: recipes/NAME.yaml)")
    said = verb("predict", predict_verb, "a finished run's word on new texts", recipe=False)
    said.add_argument("run", type=Path, help="a finished run's folder")
    said.add_argument("texts", nargs="*", help="texts to predict")
    said.add_argument("--in", dest="source", type=Path, help="a csv file with the run's columns")
    said.add_argument("--out", type=Path, help="where to write it with labels (default: here)")
    said.add_argument("--json", action="store_true", help="one JSON object a line")
    return top


def run_parser() -> argparse.ArgumentParser:
    """The options of `run.py`, behind its key=value settings."""
    options = argparse.ArgumentParser(prog="run.py", usage="run.py recipe=NAME [key=value ...] [options]")
    add_run_options(options)
    return options


def add_run_options(options: argparse.ArgumentParser) -> None:
    """What can be said of a run besides its recipe."""
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie")
    options.add_argument("--again", action="store_true", help="run once more, beside a finished run")
    options.add_argument("--inexact", action="store_true", help="go on with other ranks or threads")
    options.add_argument("--json", action="store_true", help="print the record as JSON")


def load(name: str, settings: Sequence[str]) -> "Recipe":
    """The recipe that the command line describes."""
    from peftkit.recipe import Recipe

    return Recipe.of(compose(name, parse_overrides(settings)))


def train_verb(options: Any) -> None:
    """Train here, or through accelerate's launcher once the recipe is known to be right."""
    recipe = load(options.recipe, options.settings)
    if options.ranks == 1 and options.launch is None:
        train_and_show(recipe, options)
        return
    from peftkit.launching import launch

    code = launch(options)
    if code:
        raise SystemExit(code)


def train_and_show(recipe: "Recipe", options: Any) -> None:
    """Train in this process; rank 0 prints the table."""
    from peftkit.runner import train

    record = train(recipe, options.runs, options.again, options.inexact)
    if os.environ.get("RANK", "0") != "0":
        return
    if options.json:
        print(record.model_dump_json(indent=1))
        return
    for note in record.notes:
        print(f"note: {note}")
    print_rows(record_rows(record))
    if record.data.stand_in:
        print(f"trained and scored on {record.data.used}, not on {record.data.asked}")


def show_verb(options: Any) -> None:
    """Print each setting with its value and who set it."""
    composition = compose(options.recipe, parse_overrides(options.settings))
    from peftkit.recipe import Recipe

    recipe = Recipe.of(composition)
    if options.json:
        print(json.dumps({"name": recipe.name, **recipe.settings()}, indent=1))
        return
    rows = [
        {"setting": path, "value": json.dumps(value), "set by": source_of(composition, path)}
        for path, value in flat(recipe.settings())
    ]
    print_rows(rows)


def source_of(composition: "Composition", path: str) -> str:
    """Who set a value; the strategy, task or library does where nobody else did."""
    known = {p: s for p, s in composition.sources.items() if p == path}
    return known.get(path, "default")


def flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted path, value)."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        path = f"{above}{key}"
        found += flat(value, f"{path}.") if isinstance(value, dict) and value else [(path, value)]
    return found


def plan_verb(options: Any) -> None:
    """Print the plan."""
    from peftkit.planning import plan

    planned = plan(load(options.recipe, options.settings))
    if options.json:
        print(planned.model_dump_json(indent=1))
        return
    rows = [{"what": path, "value": value} for path, value in flat(planned.model_dump())]
    print_rows([*rows, {"what": "memory.total", "value": planned.memory.total}])


def list_verb(options: Any) -> None:
    """Print what there is, with a line about each."""
    rows = listing(options.family)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_rows(rows)


def listing(family: str) -> list[dict[str, Any]]:
    """The members of a family: name, what it is, its settings."""
    if family == "recipes":
        found = recipe_names()
        return [{"name": name, "file": str(path)} for name, path in found.items()]
    if family == "metrics":
        from peftkit.metrics import METRICS

        return [{"name": name, "about": about} for name, about in METRICS.items()]
    from peftkit.recipe import PARTS

    singular = {"strategies": "strategy", "tasks": "task", "quantization": "quantize"}
    kinds = PARTS[singular.get(family, family)].kinds()  # type: ignore[attr-defined]
    return [
        {"name": kind, "about": (cls.__doc__ or "").split("\n")[0], "settings": settings_of(cls)}
        for kind, cls in kinds.items()
    ]


def settings_of(cls: Any) -> str:
    """A component's settings with their defaults, as one would type them."""
    return " ".join(
        f"{name}={json.dumps(field.get_default(call_default_factory=True), default=plain)}"
        for name, field in cls.model_fields.items()
        if name != "kind" and not field.is_required()
    )


def plain(value: Any) -> Any:
    """A default that is a settings object, as plain data."""
    return value.model_dump(mode="json")


def schema_verb(options: Any) -> None:
    """Print the JSON schema of recipe files."""
    from peftkit.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


def new_verb(options: Any) -> None:
    """Write a recipe for the user's data and say what was guessed."""
    from peftkit.starting import new

    found = new(options.data, options.to)
    for line in found.lines:
        print(line)
    print(f"wrote {found.path}; next: peftkit train {found.path}")


def predict_verb(options: Any) -> None:
    """Predict texts given here, or the rows of a csv file."""
    from peftkit.predicting import predict_file, predictions
    from peftkit.record import RunFolder

    folder = RunFolder.open(options.run).path
    if options.source is not None:
        count = predict_file(folder, options.source, options.out)
        print(f"{count} rows scored", file=sys.stderr)
        return
    if not options.texts:
        raise RecipeError("nothing to predict - give texts, or a file with --in texts.csv")
    for text, said in zip(options.texts, predictions(folder, options.texts), strict=True):
        if options.json:
            print(json.dumps({"text": text, **said}))
        else:
            chances = "  ".join(f"{k} {v:.4f}" for k, v in said["probabilities"].items())
            print(f"{said['label']}\t{chances}\t{text}")


if __name__ == "__main__":
    sys.exit(main())
