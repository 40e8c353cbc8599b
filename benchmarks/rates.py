"""Each strategy's default learning rate against others: python benchmarks/rates.py DATA.

Chosen by nobody: the validation split's best score, at the default and at thrice and a third of it
(`--factors`), on two data sets. Written to measurements/rates.json, one line a run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from strategies import RECIPES, STRATEGIES, each_in_its_process

from peftkit.storage.yaml import load_yaml
from peftkit.strategies.base import Strategy

TO = Path(__file__).parent / "measurements" / "rates.json"
SHORT = ["data.limit.train=2000", "training.epochs=2", "training.evaluate=epoch"]


def main() -> None:
    """Run all rates that have no run yet; write what the validation splits said."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with the folders sst2 and mrpc")
    options.add_argument("--sets", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    options.add_argument("--factors", nargs="+", type=float, default=[1 / 3, 1.0, 3.0])
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--together", type=int, default=1, help="runs at a time")
    given = options.parse_args()
    requested, wanted = [], []
    for strategy in given.strategies:
        default = Strategy.parse(load_yaml(STRATEGIES[strategy]), "strategy").default_lr
        for name in given.sets:
            for factor in given.factors:
                lr = float(f"{default * factor:.2g}")
                requested.append(
                    {"strategy": strategy, "data": name, "lr": lr, "default": factor == 1}
                )
                wanted.append((name, strategy, [f"training.lr={lr}", *SHORT], given))
    for one, (record, result) in zip(
        requested, each_in_its_process(wanted, given.together), strict=True
    ):
        print(result, flush=True)
        if record is not None:
            n = record["rows"]["validation"]
            add({**one, "validation": round(record["validation"]["score"], 4), "n": n})


def add(line: dict[str, Any]) -> None:
    """Put one run's line into the file, in place of an earlier one of the same rate."""
    lines = json.loads(TO.read_text()) if TO.is_file() else []
    unique = {(o["strategy"], o["data"], o["lr"]): o for o in [*lines, line]}
    rows = sorted(unique.values(), key=lambda o: (o["strategy"], o["data"], o["lr"]))
    TO.write_text("[\n " + ",\n ".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()
