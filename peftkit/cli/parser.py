"""The command-line parsers of `peftkit` and `run.py`."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

FAMILIES = (
    *("recipes", "strategies", "tasks", "data", "quantization"),
    *("metrics", "formats", "charts"),
)


class Parser(argparse.ArgumentParser):
    """A parser that accepts options between settings; only rank 0 prints errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._nested = False
        # until Python 3.14 `-1,1` and `-1e3` are taken for options, `-1` is not
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse intermixed arguments: argparse would refuse `a=1 --json b=2`."""
        if self._nested or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._nested = True  # parse_known_intermixed_args calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._nested = False

    def error(self, message: str) -> NoReturn:
        """Print the message with a hint, on rank 0; exit with code 2."""
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0].rpartition("/")[2]
            message += f" - write a value that starts with - as {option}=VALUE"
        elif message.startswith("unrecognized arguments: -"):
            message += " - put an argument that starts with - and is no option at the end, after --"
        if os.environ.get("RANK", "0") == "0":
            super().error(message)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of `peftkit`; the chosen command is `command`."""
    top = Parser(
        prog="peftkit",
        description="Parameter-efficient fine-tuning: train, compare and deploy adapters.",
        epilog="See 'peftkit COMMAND --help' for the options of a command.",
    )
    commands = top.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )

    def command(name: str, text: str, json: str = "print the result as JSON") -> Parser:
        description = f"{text[0].upper()}{text[1:]}."
        sub: Parser = commands.add_parser(name, help=text, description=description)
        sub.add_argument("--json", action="store_true", help=json)
        return sub

    add_new(command("new", "write a recipe for your own data"))
    add_train(command("train", "train and evaluate a recipe", "print the record as JSON"))
    add_predict(command("predict", "predict texts with a finished run", "print JSON lines"))
    add_chat(command("chat", "chat with the model of a finished run", "print JSON lines"))
    add_compare(command("compare", "train several strategies and compare their scores"))
    add_report(command("report", "write a report on finished runs: scores, costs, significance"))
    add_merge(command("merge", "merge an adapter into its base model"))
    add_export(command("export", "export a run to a directory that loads without peftkit"))
    add_recipe(command("plan", "estimate the memory and time of a run without loading weights"))
    add_show(command("show", "show all settings of a recipe and where they are set"))
    add_list(command("list", f"list {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]}"))
    schema = command("schema", "print the JSON schema of recipes, for editors", "no effect")
    add_plugins(schema)
    return top


def run_parser() -> argparse.ArgumentParser:
    """The parser of `run.py`."""
    options = Parser(
        prog="run.py",
        usage="run.py recipe=NAME [key=value ...] [options]",
        description="Train and evaluate a recipe, as one rank of a launcher.",
    )
    options.add_argument("settings", nargs="*", metavar="key=value", help="recipe=NAME, settings")
    options.add_argument("--json", action="store_true", help="print the record as JSON")
    add_run_options(options)
    return options


def add_recipe(options: argparse.ArgumentParser) -> None:
    """A recipe and its overrides."""
    add = options.add_argument
    add("recipe", type=recipe_name, help="name or file of a recipe")
    add("settings", nargs="*", metavar="key=value", help="settings to override")


def recipe_name(text: str) -> str:
    """`lora_imdb`, also where it was written as for run.py (`recipe=lora_imdb`)."""
    return text.removeprefix("recipe=")


def add_new(options: argparse.ArgumentParser) -> None:
    """The arguments of `new`."""
    add = options.add_argument
    add("data", type=Path, help="a CSV, TSV, JSON, JSON Lines or Parquet file, or their directory")
    add("--to", type=Path, help="file of the recipe (default: recipes/NAME.yaml)")


def add_train(options: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    add = options.add_argument
    add_recipe(options)
    add_run_options(options)
    add("-n", "--ranks", type=count, help="number of processes on this machine")
    add("--launch", type=Path, help="an accelerate config file, such as those in recipes/launch/")


def count(text: str) -> int:
    """A positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"should be 1 or more (got {number})")
    return number


def add_run_options(options: argparse.ArgumentParser) -> None:
    """The options of a run, which are no settings of its recipe."""
    add = options.add_argument
    add("--runs", type=Path, default=Path("runs"), help="directory of all runs (default: runs)")
    add("--rerun", action="store_true", help="train a finished recipe again, in a new directory")
    add(
        "--allow-inexact-resume",
        action="store_true",
        help="resume with another number of ranks or threads than before",
    )


def add_plugins(options: argparse.ArgumentParser) -> None:
    """The modules of plug-ins."""
    add = options.add_argument
    add("--plugin", action="append", default=[], metavar="MODULE", help="a plug-in to import first")


def add_show(options: argparse.ArgumentParser) -> None:
    """The arguments of `show`."""
    add = options.add_argument
    add_recipe(options)
    add("--tree", action="store_true", help="show the modules of the model and what is trained")


def add_list(options: argparse.ArgumentParser) -> None:
    """The arguments of `list`."""
    add = options.add_argument
    add("family", nargs="?", choices=FAMILIES, default="recipes", help="default: recipes")
    add_plugins(options)
    add("--for", dest="model", metavar="MODEL", help="show the cost of each strategy on a model")


def add_finished_run(options: argparse.ArgumentParser) -> None:
    """The directory of a finished run."""
    add = options.add_argument
    add("run", type=Path, help="directory of a finished run")


def add_predict(options: argparse.ArgumentParser) -> None:
    """The arguments of `predict`."""
    add = options.add_argument
    add_finished_run(options)
    add("texts", nargs="*", help="texts to predict; pairs if the run has two inputs")
    add("--in", dest="source", type=Path, metavar="FILE", help="data file with rows to predict")
    add("--out", type=Path, metavar="FILE", help="output file, .csv or .jsonl (default: print)")


def add_chat(options: argparse.ArgumentParser) -> None:
    """The arguments of `chat`."""
    add = options.add_argument
    add_finished_run(options)
    add("--system", help="system prompt")
    add("--max-new-tokens", type=count, help="maximum length of an answer")
    add("--temperature", type=float, help="sampling temperature; 0: greedy")
    add("--seed", type=int, help="random seed of the sampling")


def add_merge(options: argparse.ArgumentParser) -> None:
    """The arguments of `merge`."""
    add = options.add_argument
    add(
        "run",
        type=Path,
        nargs="+",
        help="directories of runs, artifacts or PEFT adapters, all of the same base model",
    )
    add_verified_output(options)
    add("--base", help="name or directory of the base model (default: as the adapter was trained)")
    add(
        "--onto",
        choices=("trained", "original"),
        default="trained",
        help="after quantized training: merge into the dequantized base (default) or the original",
    )
    add("--compare-bases", action="store_true", help="measure the difference for both --onto bases")
    add("--subtract", action="store_true", help="remove the adapter from the merged model --base")
    add_mix(options.add_argument_group("merging several adapters"))


def add_verified_output(options: argparse.ArgumentParser) -> None:
    """The output directory of `merge` and `export`, and the texts to verify it on."""
    add = options.add_argument
    add("--to", type=Path, required=True, help="directory to create")
    add(
        "--verify",
        metavar="off|FILE",
        help="texts to verify the result on, one per line (default: held-out rows of the run)",
    )


def add_mix(options: Any) -> None:
    """The arguments of `merge` for several adapters."""
    add = options.add_argument
    add("--weights", type=numbers, metavar="W,W", help="weight of each adapter (default: 1)")
    add("--method", help="sum (default), magnitude_prune, ties, dare_linear or dare_ties")
    add("--density", type=float, help="share of elements to keep when pruning (default: 0.5)")
    add("--seed", type=int, help="random seed of dare_* (default: 0)")
    add("--head-from", type=Path, metavar="RUN", help="the run whose trained head to use")


def numbers(text: str) -> list[float]:
    """Comma-separated numbers."""
    return [float(number) for number in text.split(",")]


def add_export(options: argparse.ArgumentParser) -> None:
    """The arguments of `export`."""
    add = options.add_argument
    add_finished_run(options)
    add_verified_output(options)
    add(
        "--base",
        choices=("embed", "reference"),
        default="embed",
        help="copy the weights of the base model (default), or refer to them by SHA-256",
    )


def add_compare(options: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    add = options.add_argument
    add("file", type=Path, help="a comparison file, such as benchmarks/imdb.yaml")
    add("settings", nargs="*", metavar="key=value", help="settings to override")
    add("--runs", type=Path, default=Path("runs"), help="directory of all runs (default: runs)")
    add("--to", type=Path, help="directory of the report (default: RUNS/NAME/report)")
    add("--workers", type=count, help="number of runs at a time (default: one per GPU)")
    add("--plan", action="store_true", help="only print what would be run")
    add("--join", action="store_true", help="share the runs of another process")
    add("--retry", action="store_true", help="repeat failed runs")
    add_allow_mixed(options)


def add_report(options: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    add = options.add_argument
    add("records", nargs="+", type=Path, help="directories of runs, or directories of those")
    add("--to", type=Path, help="directory for the page, tables and charts")
    add("--png", action="store_true", help="also write the charts as PNG")
    add("--reference", help="strategy to compare with (default: full)")
    add("--metric", help="metric to compare (default: the headline metric)")
    add(
        "--margin",
        type=margin,
        default=0.01,
        help="acceptable loss of a cheaper strategy, as a share of the score (default: 0.01)",
    )
    add_allow_mixed(options)
    add_plugins(options)


def add_allow_mixed(options: argparse.ArgumentParser) -> None:
    """Whether runs that are not comparable may be in one report."""
    add = options.add_argument
    add(
        "--allow-mixed",
        action="store_true",
        help="report runs of different machines, data or versions together, with a note",
    )


def margin(text: str) -> float:
    """A share of the score that may be lost."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"should be at least 0 and below 1 (got {text})")
    return number
