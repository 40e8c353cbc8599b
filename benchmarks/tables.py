"""Fills the tables of benchmarks/README.md from records and measurements."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Replace what stands behind each table's mark."""
    page = HERE / "README.md"
    text = page.read_text()
    for name, table in (("imdb_first", imdb_first()), ("training_speed", training_speed())):
        mark = f"<!-- table: {name} -->"
        text = re.sub(
            rf"{mark}\n(\n?\|.*\n)*", f"{mark}\n\n{table}\n" if table else f"{mark}\n", text
        )
    page.write_text(text)


def imdb_first() -> str:
    """One row a strategy: mean and standard deviation over the seeds that have a record."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((HERE / "records" / "imdb_first").glob("*/record.json")):
        record = json.loads(path.read_text())
        groups[record["name"]].append(record)
    lines = [
        "| recipe | seeds | trainable | accuracy, mean ± sd | each seed's 95 % interval "
        "| peak MiB | train s | MiB on disk |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        records.sort(key=lambda record: record["recipe"]["training"]["seed"])
        lines.append(row(name, records))
    majority = {json.dumps(r["baseline"]["accuracy"]["value"]) for g in groups.values() for r in g}
    lines += [f"| majority class | | 0 | {m} | | | | |" for m in sorted(majority)]
    return "\n".join(lines) if groups else ""


def row(name: str, records: list[Any]) -> str:
    """A strategy's row."""
    counted, scores = records[0]["parameters"], [r["scores"]["accuracy"] for r in records]
    values = [score["value"] for score in scores]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    intervals = ", ".join(f"{score['low']:.3f} to {score['high']:.3f}" for score in scores)

    def median(key: str) -> float:
        return statistics.median(record["cost"][key] for record in records)

    cells = [
        name,
        str(len(records)),
        f"{counted['trainable']:,} ({counted['trainable'] / counted['total']:.2%})",
        f"{statistics.mean(values):.4f}{spread}",
        intervals,
        f"{median('peak_bytes') / 2**20:,.0f}",
        f"{median('train_seconds'):.0f}",
        f"{median('artefact_bytes') / 2**20:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def training_speed() -> str:
    """Both sides' speed, accuracy and memory."""
    path = HERE / "measurements" / "training_speed.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text())
    lines = ["| side | samples/s, median | accuracy | peak MiB |", "|---|---|---|---|"]
    for side in ("theirs", "ours"):
        speed = statistics.median(found["samples_per_second"][side])
        peak = found["peak_bytes"][side] / 2**20
        lines.append(f"| {side} | {speed:.1f} | {found['accuracy'][side]:.3f} | {peak:,.0f} |")
    ratios = ", ".join(f"{ratio:.1f}" for ratio in found["ratios"])
    lines.append(f"| ratio, by round | {ratios} (median {found['median_ratio']:.1f}) | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
