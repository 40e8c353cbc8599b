"""The model card of an artifact: what it is, its scores and how to load it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.config.composition import Composition
from peftkit.config.recipe import Recipe
from peftkit.metrics.registry import gain
from peftkit.records.record import RunRecord
from peftkit.tasks.base import Task

if TYPE_CHECKING:
    from peftkit.metrics.registry import Score

HEADER = "---\n{metadata}---\n\n# {name}\n\n"
WITH_PEFTKIT = """```python
import peftkit

peftkit.predict("FOLDER_OF_THE_RUN", [{example}])
```
"""
WITH_PEFT = """With PEFT and transformers alone (padded batches{stored}):

```python
from peft import PeftModel
from transformers import {auto_class}, AutoConfig, AutoTokenizer

config = AutoConfig.from_pretrained("ARTIFACT")
base = {auto_class}.from_pretrained("{base}", config=config{sizes})
model = PeftModel.from_pretrained(base, "ARTIFACT").eval()
tokenizer = AutoTokenizer.from_pretrained("{base}")
```
"""
WITH_TRANSFORMERS = """With transformers alone:

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("ARTIFACT")
tokenizer = AutoTokenizer.from_pretrained("{base}")
```
"""
MARKED = """
Not with PEFT or transformers alone: the task adds markers to the vocabulary and reads the model at
them. `peftkit export RUN --to DIR` makes a directory of the run that transformers alone can load.
"""
LOADING = {"peftkit": "", "peft": WITH_PEFT, "transformers": WITH_TRANSFORMERS}


def model_card(record: RunRecord) -> str:
    """The card of a finished run's artifact, in Markdown with the hub's metadata."""
    recipe = recipe_of(record)
    described = description(record, recipe, recipe.strategy.loads_with)
    how_to = WITH_PEFTKIT.format(example=example(recipe.task)) + loading(record, recipe)
    return f"{described}\n## How to load it\n\n{how_to}"


def description(record: RunRecord, recipe: Recipe, library: str) -> str:
    """The card without how to load it; `library` is the one that loads it."""
    parts = [
        HEADER.format(metadata=metadata(record, recipe, library), name=record.name),
        *[f"**{note}.**\n\n" for note in [record.data.note] if note],
        table(facts(record, recipe)),
        f"\n## Scores\n\nOn {tested(record)}, with 95 % bootstrap intervals over these rows.\n\n",
        table(score_rows(record)),
    ]
    return "".join(parts)


def recipe_of(record: RunRecord) -> Recipe:
    """The recipe of a record."""
    return Recipe.of(Composition(record.name, record.recipe))


def metadata(record: RunRecord, recipe: Recipe, library: str) -> str:
    """The hub's metadata as YAML: base, task and the headline score."""
    from huggingface_hub import EvalResult, ModelCardData

    task, headline = recipe.task.pipeline_tag, record.scores.get(record.headline)
    results = None
    if headline is not None:
        results = [
            EvalResult(
                task_type=task,
                dataset_type=record.data.used,
                dataset_name=record.data.used,
                metric_type=record.headline,
                metric_value=headline.value,
            )
        ]
    data = ModelCardData(
        base_model=record.model.used,
        library_name=library,
        pipeline_tag=task,
        tags=["peftkit", recipe.strategy.kind],
        model_name=record.name if results else None,
        eval_results=results,
    )
    return f"{data.to_yaml()}\n"


def facts(record: RunRecord, recipe: Recipe) -> list[tuple[str, str]]:
    """Base, strategy, task, data and training, as table rows."""
    parameters = record.parameters
    assert parameters is not None, "a finished run has counted its parameters"
    settings = ", ".join(f"{k}={v}" for k, v in recipe.strategy.to_dict().items() if k != "kind")
    return [
        ("", ""),
        ("base", f"{record.model.used} ({record.model.identity}, from {record.model.origin})"),
        ("strategy", f"{recipe.strategy.kind} ({settings}), source {recipe.strategy.source}"),
        ("stored in", f"{recipe.quantize.kind if recipe.quantize.bits else precision(record)}"),
        (
            "trainable",
            f"{parameters.trainable:,} of {parameters.total:,} ({parameters.share:.2%})",
        ),
        ("task", recipe.task.kind),
        ("data", f"{record.data.used} ({record.data.identity}), {rows(record)}"),
        ("learning rate", f"{recipe.lr():g}, {record.steps} steps, seed {recipe.training.seed}"),
        ("proof", proof(record)),
    ]


def precision(record: RunRecord) -> str:
    """The storage dtype of the base."""
    return record.world.precision if record.world is not None else "unknown"


def rows(record: RunRecord) -> str:
    """The number of rows in each split."""
    return ", ".join(f"{n} {split}" for split, n in record.rows.items() if split in SPLITS)


SPLITS = ("train", "validation", "test")


def proof(record: RunRecord) -> str:
    """The result of the run's integrity checks."""
    if record.proof is None:
        return "none"
    status, difference = record.proof.status, record.proof.reload_difference
    if difference is None:
        return status
    return f"{status}; outputs of the reloaded artifact differ by {difference:.2g}"


def tested(record: RunRecord) -> str:
    """What was scored."""
    return f"{record.rows.get('test', 0):,} test rows of {record.data.used}"


def score_rows(record: RunRecord) -> list[tuple[str, str]]:
    """The scores over all rows, and the headline score of each baseline."""
    found = [("score", "value [95 % interval]")]
    found += [(n + direction(n), format_score(s)) for n, s in record.scores.items() if "[" not in n]
    for name, scores in (record.baselines or {"baseline": record.baseline}).items():
        if record.headline in scores:
            found.append((f"{record.headline}, {name}", format_score(scores[record.headline])))
    return found


def direction(metric: str) -> str:
    """A suffix for metrics of which less is better."""
    return " (less is better)" if gain(metric, 1.0) < 0 else ""


def format_score(score: "Score") -> str:
    """A score with its interval, if it has one."""
    value = "undefined" if score.value is None else f"{score.value:.4f}"
    interval = "" if score.low is None else f" [{score.low:.4f}, {score.high:.4f}]"
    return f"{value}{interval}, n = {score.n:,}"


def table(lines: list[tuple[str, str]]) -> str:
    """A Markdown table; the first row is the header."""
    head, *body = [f"| {name} | {value.replace('|', '/')} |\n" for name, value in lines]
    return "".join([head, "|---|---|\n", *body])


def loading(record: RunRecord, recipe: Recipe) -> str:
    """How to load the artifact without peftkit, if possible."""
    from peftkit.loading.heads import has_new_head

    stored = (
        f"; in training the base was stored in {recipe.quantize.kind}"
        if recipe.quantize.bits
        else ""
    )
    words: dict[str, Any] = {
        "auto_class": auto_class_name(recipe.task, record),
        "base": record.model.used,
        "stored": stored,
        "sizes": ", ignore_mismatched_sizes=True" if has_new_head(record) else "",
    }
    if recipe.task.markers():
        return MARKED
    text = LOADING[recipe.strategy.loads_with].format(**words)
    return f"\n{text}" if text else ""


def example(task: Task) -> str:
    """An example input to predict, as Python code."""
    needed = [role for role in task.inputs if task.roles[role]]
    texts = ", ".join(['"..."'] * max(1, len(needed)))
    return f"({texts})" if len(needed) > 1 else texts


def auto_class_name(task: Task, record: RunRecord) -> str:
    """The name of the transformers class that loads the model."""
    from transformers import AutoConfig

    place = Path(record.model.location)
    config = AutoConfig.from_pretrained(place) if (place / "config.json").is_file() else None
    return str(task.auto_class(config).__name__)
