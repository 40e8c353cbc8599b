"""Verbs: what each does with its options, and what it prints."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from peftkit.cli.tables import record_rows
from peftkit.config.composition import compose, parse_overrides
from peftkit.errors import RecipeError
from peftkit.runs.learning_curves import printable
from peftkit.tables import print_rows

if TYPE_CHECKING:
    from peftkit.config.recipe import Recipe


def load(name: str, settings: Sequence[str]) -> "Recipe":
    """The recipe that the command line describes."""
    from peftkit.config.recipe import Recipe

    return Recipe.of(compose(name, parse_overrides(settings)))


def train_verb(options: Any) -> None:
    """Train here, or through accelerate's launcher once the recipe is known to be right."""
    recipe = load(options.recipe, options.settings)
    if options.ranks in {None, 1} and options.launch is None:
        train_and_show(recipe, options)
        return
    from peftkit.cli.launch import launch

    if code := launch(options):
        raise SystemExit(code)


def train_and_show(recipe: "Recipe", options: Any) -> None:
    """Train in this process; rank 0 prints the table."""
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
        print(f"trained and scored on {record.data.used}, not on {record.data.asked}")


def show_verb(options: Any) -> None:
    """Print each setting with its value and who set it, or the tree of the model's modules."""
    if options.tree:
        from peftkit.planning.module_tree import show_tree

        show_tree(load(options.recipe, options.settings), options.json)
        return
    composition = compose(options.recipe, parse_overrides(options.settings))
    from peftkit.cli.listing import setting_rows
    from peftkit.config.recipe import Recipe

    recipe = Recipe.of(composition)
    whole = {"name": recipe.name, **recipe.settings()}
    print_made(whole, setting_rows(recipe, composition), options.json)


def plan_verb(options: Any) -> None:
    """Print the plan."""
    from peftkit.config.composition import flat
    from peftkit.planning.plan import plan

    planned = plan(load(options.recipe, options.settings), [options.recipe, *options.settings])
    facts = [*flat(planned.model_dump()), ("memory.total", planned.memory.total)]
    print_made(planned, [{"what": path, "value": value} for path, value in facts], options.json)


def list_verb(options: Any) -> None:
    """Print what there is, with a line about each."""
    from peftkit.cli.listing import listing
    from peftkit.registry import import_named

    import_named(options.plugin, "--plugin")
    if options.model is not None:
        list_offers(options)
        return
    rows = listing(options.family)
    print_made(rows, rows, options.json)


def list_offers(options: Any) -> None:
    """Print what each strategy comes to on the model that `--for` names."""
    if options.family != "strategies":
        raise RecipeError(
            f"--for goes with strategies (got {options.family}) - "
            f"type: peftkit list strategies --for {options.model}"
        )
    from peftkit.planning.strategy_costs import COUNTED, offer_rows, offers

    found = offers(options.model)
    print_made([vars(offer) for offer in found], offer_rows(found), options.json)
    if not options.json:
        print(COUNTED, file=sys.stderr)


def schema_verb(options: Any) -> None:
    """Print the JSON schema of recipe files."""
    from peftkit.config.schema import recipe_schema
    from peftkit.registry import import_named

    import_named(options.plugin, "--plugin")
    print(json.dumps(recipe_schema(), indent=1))


def new_verb(options: Any) -> None:
    """Write a recipe for the user's data and say what was guessed."""
    from peftkit.scaffold.recipe_writer import new

    found = new(options.data, options.to)
    if options.json:
        print(json.dumps({"path": str(found.path), "lines": found.lines}, indent=1))
        return
    for line in found.lines:
        print(line)
    print(f"wrote {found.path}; next: peftkit train {found.path}")


def predict_verb(options: Any) -> None:
    """Predict texts given here, or the rows of a file."""
    from peftkit.evaluation.streaming import Live
    from peftkit.inference.files import predict_file
    from peftkit.inference.predictor import inputs_of, predictions, rows_given, told
    from peftkit.records.run_dir import RunDir

    folder = RunDir.open(options.run).path
    if options.source is not None:
        count = predict_file(folder, options.source, options.out, options.json)
        print(f"{count} rows scored", file=sys.stderr)
        return
    if not options.texts:
        raise RecipeError("nothing to predict - give texts, or a file with --in texts.csv")
    rows = rows_given(options.texts, inputs := inputs_of(folder))
    live = Live(sys.stdout)
    show = live if len(rows) == 1 and sys.stdout.isatty() and not options.json else None
    for row, said in zip(rows, predictions(folder, rows, show), strict=True):
        if options.json:
            print(json.dumps({**dict(zip(inputs.asked, row, strict=True)), **said}))
        else:
            print("\t".join([live.rest(told(said)), *row]))


def chat_verb(options: Any) -> None:
    """Talk with a run's model."""
    from peftkit.inference.chat import chat

    chat(options)


def merge_verb(options: Any) -> None:
    """Fold an adapter into its base, and say how near the result is to base + adapter."""
    from peftkit.merging.merge import merge
    from peftkit.merging.verification.proof import merge_rows

    given = {k: v for k, v in vars(options).items() if k not in ("verb", "json", "run")}
    made = merge(options.run, **given)
    print_made(made, merge_rows(made), options.json)


def export_verb(options: Any) -> None:
    """Write a run's result as a folder that opens without peftkit, and say how near it is."""
    from peftkit.exporting.export import export
    from peftkit.exporting.facts import export_rows

    made = export(options.run, options.to, options.base, options.verify)
    print_made(made, export_rows(made), options.json)


def print_made(made: Any, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print what was made: the whole value as JSON, or its table."""
    if not as_json:
        print_rows(rows)
    else:
        plain = isinstance(made, (dict, list))
        print(json.dumps(made, indent=1) if plain else made.model_dump_json(indent=1))


def compare_verb(options: Any) -> None:
    """Make a comparison, or only say what it will take, or help another process with it."""
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


def report_verb(options: Any) -> None:
    """Compare runs; print the page, or write it and print the verdict."""
    from peftkit.reporting.render.svg import Drawing

    if options.png and options.to is None:
        raise RecipeError("--png writes files - name a folder for them with --to")
    with Drawing() if options.to else nullcontext() as drawing:
        from peftkit.reporting.report import report

        asked = options.reference, options.metric, options.margin, options.allow_mixed
        made = report(options.records, *asked)
        paths = made.write(options.to, options.png, drawing) if options.to else []
    if options.json:
        print(made.model_dump_json(indent=1))
        return
    if not paths:
        print(made, end="")
        return
    for line in [*made.verdict, *(f"not read: {fault}" for fault in made.unread)]:
        print(printable(line))
    print(f"wrote {', '.join(map(str, paths))}")


VERBS: dict[str, Callable[[Any], None]] = {
    "train": train_verb,
    "show": show_verb,
    "plan": plan_verb,
    "list": list_verb,
    "schema": schema_verb,
    "new": new_verb,
    "predict": predict_verb,
    "chat": chat_verb,
    "merge": merge_verb,
    "export": export_verb,
    "compare": compare_verb,
    "report": report_verb,
}
