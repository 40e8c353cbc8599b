"""Every strategy at its defaults on GLUE data, five seeds: python benchmarks/strategies.py DATA.

Each run is a process of its own, forked from one that has imported the libraries; one that is
finished is not run again.
"""

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filing import file_record

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
    options.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="NAME")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--together", type=int, default=1, help="runs at a time")
    options.add_argument("--no-file", action="store_true", help="a try: file no records")
    options.add_argument("settings", nargs="*", metavar="key=value")
    given = options.parse_intermixed_args()
    wanted = [
        (name, strategy, seed)
        for seed in range(given.seeds)
        for name in given.sets
        for strategy in given.strategies
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peftkit.attempt", "peft", "bitsandbytes"])
    failed = 0
    with ProcessPoolExecutor(given.together, context, max_tasks_per_child=1) as pool:
        for said in pool.map(run, wanted, [given] * len(wanted)):
            print(said, flush=True)
            failed += "failed" in said
    sys.exit(f"{failed} of {len(wanted)} runs failed" if failed else 0)


def run(wanted: tuple[str, str, int], given: argparse.Namespace) -> str:
    """One run, filed; a line about it."""
    import peftkit

    name, strategy, seed = wanted
    overrides = [
        f"data.path={given.data / name}",
        f"strategy={STRATEGIES[strategy]}",
        f"training.seed={seed}",
        *SETTINGS,
        *given.settings,
    ]
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115  # steps of many runs at once
    try:
        recipe = peftkit.Recipe.load(RECIPES[name], *overrides).but(name=f"{strategy}_{name}")
        record = peftkit.train(recipe, given.runs)
    except peftkit.PeftkitError as error:
        return f"{strategy} on {name}, seed {seed}: failed: {error}"
    plain = json.loads(record.model_dump_json())
    if not given.no_file:
        file_record(plain, given.runs / f"{record.name}-{record.digest[:8]}", "strategies")
    score, cost = record.scores[record.headline], record.cost
    assert cost is not None
    return (
        f"{strategy} on {name}, seed {seed}: {record.headline} {score.value:.4f} "
        f"[{score.low:.4f}, {score.high:.4f}], "
        f"{cost.train_seconds:.0f} s of {cost.total_seconds:.0f}"
    )


if __name__ == "__main__":
    main()
