"""Training speed of whole fresh processes, packed, padded and on the chosen engine.

    python benchmarks/training_speed.py DATA

DATA holds the folders `imdb` and `gsm8k`. Each measurement is one `peftkit train` of a few steps,
as users run it; variants take turns within a round, next to none, one and two other training
processes. Measurements are saved in `measurements/training_speed.json` at once: the same command
continues from there until all rounds are done, and `--minutes` ends it early.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.comparison.forecast import operations_per_token
from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.loading.model import meta_model
from peftkit.runtime.matmul_speed import KINDS, measure_matmul_speed

TO = Path(__file__).parent / "measurements" / "training_speed.json"
VARIANTS = {"packed": "on", "padded": "off", "chosen": "auto"}
FIRST_STEPS = 2
"""Left out of the steady speed: they pay for the start."""
COMMON = (
    "data.limit={train: 1600, validation: 16, test: 16}",
    "training.evaluate=never",
    "training.proof=run",
)
MODELS = {
    "MiniLM": ("lora_imdb", "imdb", ("training.batch_size=16",)),
    "SmolLM2": (
        "lora_gsm8k",
        "gsm8k",
        ("training.batch_size=8", "task={kind: instruction_tuning}", "data.truncation=all"),
    ),
}
STEPS = {("MiniLM", 64): 12, ("MiniLM", 256): 6, ("SmolLM2", 64): 4, ("SmolLM2", 256): 3}
LONG = 400
"""Steps of a run that is long enough to have its engine measured; it is stopped after that."""
PATIENCE = 600.0
"""Seconds until another process must have begun to train."""


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    model: str
    length: int
    variant: str
    beside: int = 0

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.model}/{self.length}/beside {self.beside}/{self.variant}"

    def settings(self, options: Any, steps: int) -> list[str]:
        """What `peftkit train` is told."""
        recipe, folder, own = MODELS[self.model]
        return [
            recipe,
            f"data.path={options.data / folder}",
            f"data.max_length={self.length}",
            *own,
            *COMMON,
            f"training.precision={options.precision}",
            f"training.packing={VARIANTS[self.variant]}",
            f"training.steps={steps}",
        ]


@contextmanager
def training(settings: Sequence[str]) -> "Iterator[tuple[subprocess.Popen[str], Path]]":
    """`peftkit train` in a process of its own, ended with the block, and its folder of runs."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as result:
        command = [sys.executable, "-m", "peftkit.cli", "train", *settings, f"--runs={name}"]
        process = subprocess.Popen(command, stdout=result, stderr=result, text=True)
        try:
            yield process, Path(name)
        finally:
            process.terminate()
            process.wait()
            result.seek(0)
            if process.returncode not in (0, -15, 143):
                print(result.read()[-3000:], file=sys.stderr)


def logged_steps(runs: Path) -> int:
    """Optimizer steps that the run has logged."""
    return sum(path.read_text().count('"loss"') for path in runs.glob("*/log.jsonl"))


def measure(case: Case, options: Any) -> dict[str, Any]:
    """The speed of one fresh process."""
    begun, times = time.monotonic(), {0: 0.0}
    with training(case.settings(options, STEPS[case.model, case.length])) as (process, runs):
        while process.poll() is None:
            times.setdefault(logged_steps(runs), time.monotonic())
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{case.key}: the run failed")
        record = json.loads(next(runs.glob("*/record.json")).read_text())
    tokens, steps = record["cost"]["tokens"], record["steps"]
    first = min(step for step in times if step >= FIRST_STEPS)
    steady = times[max(times)] - times[first]
    return {
        "tokens_per_second": record["cost"]["tokens_per_second"],
        # batches are alike in all variants, so that their ratios are exact
        "steady_tokens_per_second": tokens * (1 - first / steps) / steady,
        "process_seconds": time.monotonic() - begun,
        "padding_share": record["cost"]["padding_share"],
        "engine": record["engine"]["used"],
        "precision": record["world"]["precision"],
        "threads": record["world"]["threads"],
    }


@contextmanager
def neighbors(count: int, options: Any) -> Iterator[None]:
    """So many other runs, all in the midst of training."""
    if not count:
        yield
        return
    case = Case("MiniLM", 256, "packed")
    settings = [*case.settings(options, 100_000), f"training.seed={count}"]
    with training(settings) as (process, runs):
        until = time.monotonic() + PATIENCE
        while not logged_steps(runs):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("a process to run beside does not train")
            time.sleep(0.5)
        with neighbors(count - 1, options):
            yield


def choose(model: str, length: int, options: Any) -> None:
    """Have the engine for the runs of a model chosen: a long one is begun, and stopped then."""
    with training(Case(model, length, "chosen").settings(options, LONG)) as (process, runs):
        while process.poll() is None and not logged_steps(runs):
            time.sleep(0.2)


def operations_of(model: str) -> int:
    """Operations of matrix products a token of training takes, attention's apart."""
    recipe = Recipe.load(MODELS[model][0], *MODELS[model][2])
    module, _ = meta_model(recipe, find_model(recipe.model).location, recipe.task.placeholder_names)
    return operations_per_token(module)


def run(options: Any) -> None:
    """Fill the file, round by round."""
    found = json.loads(options.to.read_text()) if options.to.is_file() else {"runs": {}}
    peaks = {kind: measure_matmul_speed(kind, side=1024, seconds=2.0) for kind in KINDS}
    before = found.get("peak", peaks)  # a machine that is busy now was perhaps less so then
    found["peak"] = {kind: max(peaks[kind], before[kind]) for kind in KINDS}
    found["operations"] = {name: operations_of(name) for name in MODELS}
    until = time.monotonic() + 60 * options.minutes
    shapes = [(model, length) for model in options.models for length in options.lengths]
    if "chosen" in options.variants:
        for shape in shapes:
            choose(*shape, options)
    for turn in range(options.rounds):
        for beside in options.beside:
            cases = [
                Case(*shape, variant, beside) for shape in shapes for variant in options.variants
            ]
            due = [case for case in cases if len(found["runs"].get(case.key, [])) <= turn]
            if not due:
                continue
            with neighbors(beside, options):
                # variants take turns in being first
                for case in sorted(due, key=lambda c: (c.model, c.length, place(c.variant, turn))):
                    if time.monotonic() > until:
                        return
                    found["runs"].setdefault(case.key, []).append(measure(case, options))
                    options.to.write_text(json.dumps(found, indent=1) + "\n")
                    print(f"round {turn + 1}", case.key, line(found["runs"][case.key]), flush=True)


def place(variant: str, turn: int) -> int:
    """The position of a variant in a round."""
    return (list(VARIANTS).index(variant) + turn) % len(VARIANTS)


def line(measured: Sequence[dict[str, Any]]) -> str:
    """The last of some measurements."""
    last = measured[-1]
    speeds = f"{last['tokens_per_second']:,.0f} tokens/s, {last['steady_tokens_per_second']:,.0f}"
    return f"{speeds} steady, {last['process_seconds']:.0f} s, {last['engine']}"


def table(found: dict[str, Any]) -> str:
    """Medians of the rounds, lowest and highest, and the share of the peak, as Markdown."""
    lines = [
        "| model, tokens | other processes | variant | tokens/s [lowest, highest] | steady "
        "| share of the peak | engine | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, runs in sorted(found["runs"].items()):
        model, length, beside, variant = key.split("/")
        whole = [each["tokens_per_second"] for each in runs]
        steady = statistics.median(each["steady_tokens_per_second"] for each in runs)
        peak = found["peak"][runs[0]["precision"]]
        share = found["operations"][model] * statistics.median(whole) / peak
        cells = [
            f"{model}, {length}",
            beside.removeprefix("beside "),
            variant,
            f"{statistics.median(whole):,.0f} [{min(whole):,.0f}, {max(whole):,.0f}]",
            f"{steady:,.0f}",
            f"{share:.1%}",
            ", ".join(sorted({each["engine"] for each in runs})),
            str(len(runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    peaks = ", ".join(f"{kind} {speed / 1e9:,.0f}" for kind, speed in found["peak"].items())
    lines.append(f"| peak of matrix products, GFLOP/s: {peaks} | | | | | | | |")
    return "\n".join(lines)


def listed(kind: Any) -> Any:
    """Reads values that are separated by commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", type=listed(str), default=list(MODELS))
    parser.add_argument("--lengths", type=listed(int), default=[64, 256])
    parser.add_argument("--variants", type=listed(str), default=list(VARIANTS))
    parser.add_argument("--beside", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--precision", choices=["auto", *KINDS], default="auto")
    parser.add_argument("--to", type=Path, default=TO)
    options = parser.parse_args()
    options.data = options.data.resolve()
    # the processes that were started end with this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run(options)
    if options.to.is_file():
        print(table(json.loads(options.to.read_text())))


if __name__ == "__main__":
    main()
