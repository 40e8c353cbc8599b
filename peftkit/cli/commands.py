"""The commands: each takes the parsed options and prints its result."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.cli.exit_codes import guarded, notes_of_earlier_names
from peftkit.cli.parser import run_parser
from peftkit.cli.tables import record_rows
from peftkit.config.composition import compose, parse_overrides, recipe_names
from peftkit.deprecation import current_options
from peftkit.errors import RecipeError
from peftkit.runs.learning_curves import printable
from peftkit.tables import print_rows

if TYPE_CHECKING:
    from peftkit.config.recipe import Recipe


def run_recipe(arguments: Sequence[str]) -> int:
    """Run `run.py recipe=NAME key=value ...` on this rank; the exit code."""

    def work() -> None:
        named = [a.partition("=")[2] for a in options.settings if a.startswith("recipe=")]
        if len(named) != 1 or not named[0]:
            what = f"recipe= is given {len(named)} times" if named[1:] else "recipe= is missing"
            raise RecipeError(f"{what} - set recipe=NAME, one of {', '.join(recipe_names())}")
        settings = [a for a in options.settings if not a.startswith("recipe=")]
        train_and_show(load(named[0], settings), options)

    with notes_of_earlier_names():
        options = run_parser().parse_args(current_options(arguments))
        return guarded(work)


def load(name: str, settings: Sequence[str]) -> "Recipe":
    """The recipe with the settings of the command line."""
    from peftkit.config.recipe import Recipe

    return Recipe.of(compose(name, parse_overrides(settings)))


def train_command(options: Any) -> None:
    """Train in this process, or launch several ranks once the recipe is validated."""
    recipe = load(options.recipe, options.settings)
    if options.ranks in {None, 1} and options.launch is None:
        train_and_show(recipe, options)
        return
    from peftkit.cli.launch import launch

    if code := launch(options):
        raise SystemExit(code)


def train_and_show(recipe: "Recipe", options: Any) -> None:
    """Train in this process; rank 0 prints the record."""
    from peftkit.runs.runner import train

    record = train(recipe, options.runs, options.rerun, options.allow_inexact_resume)
    if os.environ.get("RANK", "0") != "0":
        return
    if options.json:
        print(record.model_dump_json(indent=1))
        return
    for note in record.notes:
        print(f"note: {note}")
    print_rows(record_rows(record))
    if record.data.is_fallback:
        print(f"trained and scored on {record.data.used}, not on {record.data.requested}")


def show_command(options: Any) -> None:
    """Print each setting with its value and source, or the module tree of the model."""
    if options.tree:
        from peftkit.planning.module_tree import show_tree

        show_tree(load(options.recipe, options.settings), options.json)
        return
    composition = compose(options.recipe, parse_overrides(options.settings))
    from peftkit.cli.listing import setting_rows
    from peftkit.config.recipe import Recipe

    recipe = Recipe.of(composition)
    whole = {"name": recipe.name, **recipe.settings()}
    print_result(whole, setting_rows(recipe, composition), options.json)


def plan_command(options: Any) -> None:
    """Print the plan of a run."""
    from peftkit.config.composition import flat
    from peftkit.planning.plan import plan

    planned = plan(load(options.recipe, options.settings), [options.recipe, *options.settings])
    facts = [*flat(planned.model_dump()), ("memory.total", planned.memory.total)]
    print_result(planned, [{"what": path, "value": value} for path, value in facts], options.json)


def list_command(options: Any) -> None:
    """Print the available recipes, strategies, ..., each with a description."""
    from peftkit.cli.listing import listing
    from peftkit.registry import import_named

    import_named(options.plugin, "--plugin")
    if options.model is not None:
        list_strategy_costs(options)
        return
    rows = listing(options.family)
    print_result(rows, rows, options.json)


def list_strategy_costs(options: Any) -> None:
    """Print the cost of each strategy on the model given by `--for`."""
    if options.family != "strategies":
        raise RecipeError(
            f"--for applies to strategies (got {options.family}) - "
            f"run: peftkit list strategies --for {options.model}"
        )
    from peftkit.planning.strategy_costs import COUNTED, cost_rows, strategy_costs

    found = strategy_costs(options.model)
    print_result([vars(cost) for cost in found], cost_rows(found), options.json)
    if not options.json:
        print(COUNTED, file=sys.stderr)


def schema_command(options: Any) -> None:
    """Print the JSON schema of recipes."""
    from peftkit.config.schema import recipe_schema
    from peftkit.registry import import_named

    import_named(options.plugin, "--plugin")
    print(json.dumps(recipe_schema(), indent=1))


def new_command(options: Any) -> None:
    """Write a recipe for a data file and print what was inferred from it."""
    from peftkit.scaffold.recipe_writer import new

    found = new(options.data, options.to)
    if options.json:
        print(json.dumps({"path": str(found.path), "lines": found.lines}, indent=1))
        return
    for line in found.lines:
        print(line)
    print(f"wrote {found.path}; next: peftkit train {found.path}")


def predict_command(options: Any) -> None:
    """Predict the texts of the command line, or the rows of a file."""
    from peftkit.evaluation.streaming import TextPrinter
    from peftkit.inference.files import predict_file
    from peftkit.inference.predictor import format_prediction, group_texts, inputs_of, predictions
    from peftkit.records.run_dir import RunDir

    folder = RunDir.open(options.run).path
    if options.source is not None:
        count = predict_file(folder, options.source, options.out, options.json)
        print(f"{count} rows predicted", file=sys.stderr)
        return
    if not options.texts:
        raise RecipeError("nothing to predict - give texts, or a file with --in texts.csv")
    rows = group_texts(options.texts, inputs := inputs_of(folder))
    live = TextPrinter(sys.stdout)
    show = live if len(rows) == 1 and sys.stdout.isatty() and not options.json else None
    for row, prediction in zip(rows, predictions(folder, rows, show), strict=True):
        if options.json:
            print(json.dumps({**dict(zip(inputs.required, row, strict=True)), **prediction}))
        else:
            print("\t".join([live.rest(format_prediction(prediction)), *row]))


def chat_command(options: Any) -> None:
    """Chat with the model of a run."""
    from peftkit.inference.chat import run_chat

    run_chat(options)


def merge_command(options: Any) -> None:
    """Merge adapters into their base and print how close the result is to base + adapter."""
    from peftkit.merging.merge import merge
    from peftkit.merging.verification.proof import merge_rows

    settings = {k: v for k, v in vars(options).items() if k not in ("command", "json", "run")}
    made = merge(options.run, **settings)
    print_result(made, merge_rows(made), options.json)


def export_command(options: Any) -> None:
    """Export a run to a directory that loads without peftkit and print how close its output is."""
    from peftkit.exporting.export import export
    from peftkit.exporting.facts import export_rows

    made = export(options.run, options.to, options.base, options.verify)
    print_result(made, export_rows(made), options.json)


def print_result(result: Any, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print the whole result as JSON, or its table."""
    if not as_json:
        print_rows(rows)
    else:
        plain = isinstance(result, (dict, list))
        print(json.dumps(result, indent=1) if plain else result.model_dump_json(indent=1))


def compare_command(options: Any) -> None:
    """Run a comparison, print its plan, or share the work of another process."""
    from peftkit.comparison.compare import Project, compare, join

    shared: dict[str, Any] = {"runs": options.runs, "workers": options.workers}
    if options.plan:
        Project.of(options.file, options.settings, **shared).print_plan()
        return
    if options.join:
        join(options.file, *options.settings, retry=options.retry, **shared)
        return
    made = compare(
        options.file,
        *options.settings,
        to=options.to,
        retry=options.retry,
        allow_mixed=options.allow_mixed,
        **shared,
    )
    if options.json:
        print(made.model_dump_json(indent=1))
        return
    for line in made.verdict:
        print(printable(line))


def report_command(options: Any) -> None:
    """Report on runs: print the report, or write its files and print the verdict."""
    from peftkit.registry import import_named
    from peftkit.reporting.report import report

    if options.png and options.to is None:
        raise RecipeError("--png writes files - set their directory with --to")
    import_named(options.plugin, "--plugin")
    settings = options.reference, options.metric, options.margin, options.allow_mixed
    made = report(options.records, *settings)
    paths = made.write(options.to, options.png) if options.to else []
    if options.json:
        print(made.model_dump_json(indent=1))
        return
    if not paths:
        print(made, end="")
        return
    for line in [*made.verdict, *(f"not read: {fault}" for fault in made.unread)]:
        print(printable(line))
    print(f"wrote {', '.join(map(str, paths))}")


COMMANDS: dict[str, Callable[[Any], None]] = {
    "train": train_command,
    "show": show_command,
    "plan": plan_command,
    "list": list_command,
    "schema": schema_command,
    "new": new_command,
    "predict": predict_command,
    "chat": chat_command,
    "merge": merge_command,
    "export": export_command,
    "compare": compare_command,
    "report": report_command,
}
