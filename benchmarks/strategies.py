"""Every strategy at its defaults on GLUE data, five seeds: python benchmarks/strategies.py DATA.

Each run is a process of its own, forked from one that has imported the libraries; one that is
finished is not run again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from filing import file_record

from peftkit.comparison.workers import process_context

RECIPES = {"sst2": "lora_sst2", "mrpc": "lora_mrpc"}
NAMED = [
    "full", "frozen", "linear_probe", "gradual", "bitfit", "layernorm", "lora", "rslora", "dora",
    "lora_plus", "pissa", "olora", "eva", "adalora", "vera", "oft", "boft", "loha", "lokr", "ia3",
    "adapter", "adapter_drop", "compacter", "prompt", "p_tuning", "prefix", "mam",
]  # fmt: skip
STRATEGIES = {
    **{name: name for name in NAMED},
    "houlsby": "{kind: adapter, variant: houlsby}",
    "parallel": "{kind: adapter, variant: parallel}",
}
SETTINGS = ["training.threads=1", "training.proof=run"]


def main() -> None:
    """Run what has no record yet, `--together` at a time, and file the records."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with the folders sst2 and mrpc")
    options.add_argument("--sets", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--together", type=int, default=1, help="runs at a time")
    options.add_argument("settings", nargs="*", metavar="key=value")
    given = options.parse_intermixed_args()
    wanted = [
        (name, strategy, [f"training.seed={seed}", *given.settings], given)
        for seed in range(given.seeds)
        for name in given.sets
        for strategy in given.strategies
    ]
    failed = 0
    for record, result in each_in_its_process(wanted, given.together):
        print(result, flush=True)
        failed += record is None
        if record is not None:
            folder = given.runs / f"{record['name']}-{record['digest'][:8]}"
            file_record(record, folder, "strategies")
    sys.exit(f"{failed} of {len(wanted)} runs failed" if failed else 0)


Wanted = tuple[str, str, list[str], argparse.Namespace]


def each_in_its_process(wanted: list[Wanted], together: int) -> Iterator[tuple[Any, str]]:
    """Each run's record, None where it failed, and a line about it; in the order asked for."""
    with ProcessPoolExecutor(together, process_context(), max_tasks_per_child=1) as pool:
        yield from pool.map(run, wanted)


def run(wanted: Wanted) -> tuple[Any, str]:
    """One run; its record and a line about it."""
    import peftkit

    name, strategy, settings, given = wanted
    chosen = [f"data.path={given.data / name}", f"strategy={STRATEGIES[strategy]}", *SETTINGS]
    requested = f"{strategy} on {name}, {' '.join(settings)}"
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115  # steps of many runs at once
    try:
        recipe = peftkit.Recipe.load(RECIPES[name], *chosen, *settings)
        record = peftkit.train(recipe.but(name=f"{strategy}_{name}"), given.runs)
    except peftkit.PeftkitError as error:
        return None, f"{requested}: failed: {error}"
    score, cost = record.scores[record.headline], record.cost
    assert cost is not None
    result = (
        f"{record.headline} {score.value:.4f} [{score.low:.4f}, {score.high:.4f}], "
        f"{cost.train_seconds:.0f} s of {cost.total_seconds:.0f}"
    )
    return json.loads(record.model_dump_json()), f"{requested}: {result}"


if __name__ == "__main__":
    main()
