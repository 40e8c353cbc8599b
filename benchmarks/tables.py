"""Fill the generated tables of the docs from records and measurements."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from tasks import ENCODERS, LANGUAGE_MODELS, VARIANTS

from peftkit.config.composition import Composition
from peftkit.errors import RecipeError
from peftkit.metrics.registry import find_metric, gain
from peftkit.records.record import read_record
from peftkit.reporting.render.columns import table_of
from peftkit.reporting.render.markdown import grid
from peftkit.reporting.report import Report
from peftkit.strategies.base import Strategy

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def main() -> None:
    """Replace the table below each mark on the pages of the docs."""
    fill(
        DOCS / "benchmarks.md",
        imdb_first=imdb_first(),
        strategies=strategies(),
        trainer_speed=trainer_speed(),
        training_speed=training_speed(),
        whole_matrix=whole_matrix(),
        tasks=tasks(),
        **{name: comparison(name) for name in ("imdb", "sst2")},
    )
    fill(DOCS / "strategies.md", kinds=kinds())
    fill(DOCS / "quantization.md", matrix=matrix())


def fill(page: Path, **tables: str) -> None:
    """Put each table, where there is one, below its mark on the page."""
    text = page.read_text()
    for name, table in tables.items():
        mark = f"<!-- table: {name} -->"
        text = re.sub(
            rf"{mark}\n(\n?\|.*\n)*", f"{mark}\n\n{table}\n" if table else f"{mark}\n", text
        )
    page.write_text(text)


def comparison(name: str) -> str:
    """The main columns of a comparison's report, if there is one."""
    path = HERE / "report" / name / "report.json"
    if not path.is_file():
        return ""
    report = Report.model_validate_json(path.read_text())
    return grid(*table_of(report).part(is_main=True)).rstrip()


def kinds() -> str:
    """Every strategy by name, with what it says of itself; aliases below their kind."""
    lines = ["| strategy | what | learning rate | source |", "|---|---|---|---|"]
    for kind, cls in Strategy.kinds().items():
        about = (cls.__doc__ or "").partition("\n")[0].replace("|", "/")
        lines.append(f"| `{kind}` | {about} | {rate(kind)} | {cls.source} |")
        for alias, meant in cls.aliases.items():
            result = Strategy.all_aliases()[alias]
            short = json.dumps({"kind": kind, **meant}).replace('"', "")
            same = f"`{short}`" if len(short) < 60 else f"a {result['kind']}"
            lines.append(f"| `{alias}` | {same} | {rate(alias)} | |")
    return "\n".join(lines)


def rate(name: str) -> str:
    """The default learning rate of a strategy that needs no settings."""
    try:
        return f"{Strategy.parse(name, 'strategy').default_lr:g}"
    except RecipeError:  # parts or a method must be named
        return ""


HELD = {"none": "16", "8bit": "8", "4bit": "4"}


def matrix() -> str:
    """The strategies on three models, with the quantizations of the base that work."""
    return matrix_of("matrix.json", ["tiny-bert", "tiny-llama", "tiny-t5"])


def whole_matrix() -> str:
    """The same on every tiny model."""
    return matrix_of("matrix_whole.json", None)


def matrix_of(name: str, models: list[str] | None) -> str:
    """A table of the cells in the measurement `name`, as the tests left them."""
    path = HERE / "measurements" / name
    if not path.is_file():
        return ""
    cells = [cell for cell in json.loads(path.read_text()) if cell["precision"] == "fp32"]
    models = models or list(dict.fromkeys(cell["model"] for cell in cells))
    heads = " | ".join(model.removeprefix("tiny-") for model in models)
    lines = [f"| strategy | {heads} |", "|---" * (len(models) + 1) + "|"]
    for variant in dict.fromkeys(cell["way"] for cell in cells):
        values = " | ".join(
            held_in([c for c in cells if (c["way"], c["model"]) == (variant, model)])
            for model in models
        )
        lines.append(f"| {variant} | {values} |")
    return "\n".join(lines)


def held_in(cells: list[Any]) -> str:
    """The bits that work, and those that fail; nothing is said of those that are refused."""
    works = [HELD[c["quantize"]] for c in cells if c["outcome"] == "works"]
    fails = [f"**{HELD[c['quantize']]} fails**" for c in cells if c["outcome"] == "fails"]
    return ", ".join([*works, *fails]) or "-"


def strategies() -> str:
    """One row a strategy, the mean and spread over seeds on each data set beside the majority's."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for path in sorted((HERE / "records" / "strategies").glob("*/record.json")):
        record = read_record(path).model_dump(mode="json")
        strategy, _, data = record["name"].rpartition("_")
        groups[strategy, data].append(record)
    if not groups:
        return ""
    sets = sorted({data for _, data in groups}, reverse=True)
    heads = [f"{data}: mean ± sd, lowest end of an interval, seeds" for data in sets]
    lines = [f"| strategy | trainable | lr | {' | '.join(heads)} |", "|---" * (len(sets) + 3) + "|"]
    for strategy in sorted({name for name, _ in groups}):
        found = [groups.get((strategy, data), []) for data in sets]
        some = next(records[0] for records in found if records)
        lines.append(
            f"| {strategy} | {some['parameters']['trainable']:,} | {rate_of(some):g} | "
            f"{' | '.join(map(over_seeds, found))} |"
        )
    bases = [majority(groups, data) for data in sets]
    return "\n".join([*lines, f"| majority class | 0 | | {' | '.join(bases)} |"])


def rate_of(record: Any) -> float:
    """The learning rate a run had."""
    from peftkit.config.recipe import Recipe

    return Recipe.of(Composition(record["name"], record["recipe"])).lr()


def over_seeds(records: list[Any]) -> str:
    """Mean and spread of the headline, and the worst of the seeds' interval ends."""
    if not records:
        return ""
    headline = records[0]["headline"]
    scores = [record["scores"][headline] for record in records]
    values = [score["value"] for score in scores]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    ends = "low" if find_metric(headline).higher_is_better else "high"
    lowest = (max if ends == "high" else min)(score[ends] for score in scores)
    return f"{statistics.mean(values):.3f}{spread}, {lowest:.3f}, {len(values)}"


def majority(groups: Any, data: str) -> str:
    """The majority class's headline on the test rows of `data`."""
    records = [r for (_, name), found in groups.items() if name == data for r in found]
    values = {round(r["baseline"][r["headline"]]["value"], 3) for r in records}
    return ", ".join(map(str, sorted(values)))


def tasks() -> str:
    """A row per data set and strategy, with the best baseline that needs no training."""
    lines = [
        "| data set | task, score | strategy | rows to train on, epochs | trainable | "
        "score, mean ± sd, worst end of an interval, seeds | without training, at best | "
        "more than the untrained base model's, the least that an interval leaves |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (*ENCODERS, *LANGUAGE_MODELS):
        paths = sorted((HERE / "records" / name).glob("*/record.json"))
        every = [read_record(path).model_dump(mode="json") for path in paths]
        groups: dict[Any, list[Any]] = defaultdict(list)
        for record in every:
            variant = VARIANTS.index(record["recipe"]["strategy"]["kind"])
            groups[variant, -record["rows"]["train"]].append(record)
        for (variant, _), found in sorted(groups.items()):
            lines.append(task_row(name, VARIANTS[variant], found, every))
    return "\n".join(lines) if len(lines) > 2 else ""


def task_row(name: str, variant: str, records: list[Any], every: list[Any]) -> str:
    """The row of one strategy on one data set, from `every` record of it."""
    first = records[0]
    model = "" if "MiniLM" in first["model"]["requested"] else " (SmolLM2-135M)"
    headline = first["headline"]
    cells = [
        f"{name}{model}",
        f"{first['recipe']['task']['kind']}, {headline}",
        variant,
        f"{first['rows']['train']:,}, {first['recipe']['training']['epochs']:g}",
        f"{first['parameters']['trainable']:,}",
        over_seeds(records),
        untrained([r for r in every if r["rows"]["test"] == first["rows"]["test"]], headline),
        least_gain(records, headline),
    ]
    return f"| {' | '.join(cells)} |"


def least_gain(records: list[Any], headline: str) -> str:
    """By how much each seed beats the untrained base model at least, on the same rows."""
    known = [record["details"].get("better_than_untrained", {}) for record in records]
    ends = [found[headline]["low"] for found in known if headline in found]
    return f"{min(ends):+.3f}" if ends else ""


def untrained(records: list[Any], headline: str) -> str:
    """The best of the baselines that the records hold, by the headline."""
    known = {
        name: scores[headline]["value"]
        for record in records
        for name, scores in (record["baselines"] or {"simplest": record["baseline"]}).items()
        if headline in scores and scores[headline]["value"] is not None
    }
    if not known:
        return ""
    best = max(known, key=lambda name: gain(headline, known[name]))
    return f"{known[best]:.3f} ({best.replace('_', ' ')})"


def imdb_first() -> str:
    """One row a strategy: mean and standard deviation over the seeds that have a record."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((HERE / "records" / "imdb_first").glob("*/record.json")):
        record = read_record(path).model_dump(mode="json")
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
        f"{median('artifact_bytes') / 2**20:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def trainer_speed() -> str:
    """Both sides' speed, accuracy and memory."""
    path = HERE / "measurements" / "trainer_speed.json"
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


def training_speed() -> str:
    """Speed of whole processes by engine and load."""
    path = HERE / "measurements" / "training_speed.json"
    if not path.is_file():
        return ""
    from training_speed import table

    return table(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
