"""Arguments: what can be typed behind `peftkit` and behind `run.py`."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

FAMILIES = ("recipes", "strategies", "tasks", "data", "quantization", "metrics")


class Parser(argparse.ArgumentParser):
    """A parser that takes options between settings, none abbreviated, and speaks on rank 0 only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._nested = False
        # until Python 3.14 `-1,1` and `-1e3` are taken for options, `-1` is not
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """argparse by itself takes settings in one piece only (`a=1 --json b=2` would fail)."""
        if self._nested or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._nested = True  # the intermixed way comes back to this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._nested = False

    def error(self, message: str) -> NoReturn:
        """Say on rank 0 what is wrong and how it should be; exit code 2."""
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0].rpartition("/")[2]
            message += f" - a value that begins with - is typed as {option}=VALUE"
        elif message.startswith("unrecognized arguments: -"):
            message += " - what begins with - and is no option stands at the end, behind --"
        if os.environ.get("RANK", "0") == "0":
            super().error(message)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """All verbs and their options; the chosen one is `verb`."""
    top = Parser(prog="peftkit", description="Parameter-efficient fine-tuning by recipe.")
    verbs = top.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, json: str = "as JSON") -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help=json)
        return sub

    add_train(verb("train", "train, evaluate and record a recipe", "print the record as JSON"))
    show = verb("show", "the resolved recipe, with each value's source")
    add_recipe(show)
    show.add_argument("--tree", action="store_true", help="the model's modules, and what trains")
    add_recipe(verb("plan", "what a run would do; no weights are loaded"))
    listed = verb("list", "recipes, strategies, tasks, data, quantization, metrics")
    listed.add_argument("family", nargs="?", choices=FAMILIES, default="recipes")
    listed.add_argument("--plugin", action="append", default=[], help="a module to import first")
    listed.add_argument(
        "--for", dest="model", metavar="MODEL", help="what each strategy comes to on a model"
    )
    schema = verb("schema", "the recipes' JSON schema, for editors", "as JSON, which it always is")
    schema.add_argument("--plugin", action="append", default=[], help="a module to import first")
    new = verb("new", "look at your data and write a recipe that runs")
    new.add_argument("data", type=Path, help="a csv, tsv, json, jsonl or parquet file, or a folder")
    new.add_argument("--to", type=Path, help="the recipe to write (default: recipes/NAME.yaml)")
    add_predict(verb("predict", "a finished run's word on new texts", "one JSON object a line"))
    add_chat(verb("chat", "a conversation with a finished run's model", "one JSON object a turn"))
    add_merge(verb("merge", "an adapter folded into its base: an ordinary checkpoint"))
    add_export(verb("export", "a run's result as a folder that opens without peftkit"))
    add_compare(verb("compare", "strategies held against each other, each tuned alike"))
    add_report(verb("report", "runs side by side: costs, scores and how sure the differences are"))
    return top


def run_parser() -> argparse.ArgumentParser:
    """What stands behind `run.py`."""
    options = Parser(
        prog="run.py",
        usage="run.py recipe=NAME [key=value ...] [options]",
        description="Train, evaluate and record a recipe, on this rank of any number.",
    )
    options.add_argument("settings", nargs="*", metavar="key=value", help="recipe=NAME, and more")
    options.add_argument("--json", action="store_true", help="print the record as JSON")
    add_run_options(options)
    return options


def add_recipe(options: argparse.ArgumentParser) -> None:
    """A recipe and settings to change."""
    options.add_argument("recipe", type=recipe_name, help="a recipe's name or file")
    options.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")


def recipe_name(text: str) -> str:
    """`lora_imdb`, also where it was typed as for run.py (`recipe=lora_imdb`)."""
    return text.removeprefix("recipe=")


def add_train(options: argparse.ArgumentParser) -> None:
    """What `train` takes: a recipe, and where and how to run it."""
    add_recipe(options)
    add_run_options(options)
    options.add_argument("-n", "--ranks", type=count, help="processes to start on this machine")
    options.add_argument("--launch", type=Path, help="an accelerate file, as in recipes/launch/")


def count(text: str) -> int:
    """A number of processes."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"should be 1 or more (got {number})")
    return number


def add_run_options(options: argparse.ArgumentParser) -> None:
    """What can be said of a run besides its recipe."""
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie")
    options.add_argument("--rerun", action="store_true", help="run a finished recipe again")
    options.add_argument(
        "--allow-inexact-resume",
        action="store_true",
        help="resume with other ranks or threads than before",
    )


def add_predict(options: argparse.ArgumentParser) -> None:
    """What `predict` takes: a run, and texts or a file of them."""
    options.add_argument("run", type=Path, help="a finished run's folder")
    options.add_argument("texts", nargs="*", help="texts to predict; where a run reads two, pairs")
    options.add_argument("--in", dest="source", type=Path, help="a file with the run's columns")
    options.add_argument("--out", type=Path, help="FILE.csv or .jsonl for its rows with answers")


def add_chat(options: argparse.ArgumentParser) -> None:
    """What `chat` takes: a run, and how its model is to answer."""
    options.add_argument("run", type=Path, help="a finished run's folder")
    options.add_argument("--system", help="system prompt")
    options.add_argument("--max-new-tokens", type=count, help="tokens an answer has at most")
    options.add_argument("--temperature", type=float, help="0: the most probable token each time")
    options.add_argument("--seed", type=int, help="draws tokens at a temperature")


def add_merge(options: argparse.ArgumentParser) -> None:
    """What `merge` takes: what to fold, into what, and how to prove it."""
    options.add_argument(
        "run", type=Path, nargs="+", help="runs, artifacts or PEFT adapters' folders, of one base"
    )
    options.add_argument("--to", type=Path, required=True, help="the folder to make")
    options.add_argument("--base", help="the base (default: the one the adapter was trained on)")
    options.add_argument(
        "--onto",
        choices=("trained", "original"),
        default="trained",
        help="after quantized training: the base as it was then, or the original one",
    )
    options.add_argument("--verify", metavar="off|FILE", help="texts to compare on, one a line")
    options.add_argument(
        "--compare-bases", action="store_true", help="measure what each --onto would change"
    )
    options.add_argument(
        "--subtract", action="store_true", help="take the adapter out of the merged --base again"
    )
    add_mix(options)


def add_mix(options: argparse.ArgumentParser) -> None:
    """What `merge` takes for several adapters at once."""
    options.add_argument(
        "--weights",
        type=numbers,
        metavar="W,W",
        help="of several: what each adapter's difference is multiplied with (default: 1 each)",
    )
    options.add_argument(
        "--method",
        help="of several: sum (default), magnitude_prune, ties, dare_linear or dare_ties",
    )
    options.add_argument(
        "--density", type=float, help="of several: the share of elements to keep (default: 0.5)"
    )
    options.add_argument(
        "--seed", type=int, help="of several: for what dare drops by chance (default: 0)"
    )
    options.add_argument(
        "--head-from", type=Path, metavar="RUN", help="of several: whose trained head to take"
    )


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    return [float(number) for number in text.split(",")]


def add_export(options: argparse.ArgumentParser) -> None:
    """What `export` takes: a run, where to, and how the folder holds the base."""
    options.add_argument("run", type=Path, help="a finished run's folder")
    options.add_argument("--to", type=Path, required=True, help="the folder to make")
    options.add_argument(
        "--base",
        choices=("embed", "reference"),
        default="embed",
        help="copy the base's weights, or name them with their sha256, checked at each load",
    )
    options.add_argument("--verify", metavar="off|FILE", help="texts to compare on, one a line")


def add_compare(options: argparse.ArgumentParser) -> None:
    """What `compare` takes: a comparison, and how to share its work."""
    options.add_argument("file", type=Path, help="the comparison, as benchmarks/imdb.yaml")
    options.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where its folder lies")
    options.add_argument("--to", type=Path, help="folder for the report (default: its own)")
    options.add_argument("--workers", type=count, help="runs at a time (default: one a GPU)")
    options.add_argument("--plan", action="store_true", help="say what it will take, and stop")
    options.add_argument("--join", action="store_true", help="help another process with its runs")
    options.add_argument("--retry", action="store_true", help="try runs again that failed")
    options.add_argument("--allow-mixed", action="store_true", help="mix machines, and say so")


def add_report(options: argparse.ArgumentParser) -> None:
    """What `report` takes: records, and where to write."""
    options.add_argument("records", nargs="+", type=Path, help="runs, or folders of runs")
    options.add_argument("--to", type=Path, help="folder for the page, tables and pictures")
    options.add_argument("--png", action="store_true", help="write the pictures as PNG, too")
    options.add_argument("--reference", help="strategy to compare with (default: full)")
    options.add_argument("--metric", help="score to compare (default: the records' headline)")
    options.add_argument(
        "--margin",
        type=margin,
        default=0.01,
        help="share of the score a cheaper one may lose (0.01)",
    )
    options.add_argument("--allow-mixed", action="store_true", help="mix what differs, and say so")


def margin(text: str) -> float:
    """A difference of scores that does not matter."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"should be at least 0 and below 1 (got {text})")
    return number
