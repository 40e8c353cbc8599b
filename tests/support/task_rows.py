"""Made-up rows for every task, as files that a recipe reads, of words that tiny models know."""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from peftkit.config.composition import Composition, parse_overrides
from peftkit.config.recipe import Recipe
from peftkit.hub.source import cache_folder
from peftkit.text.synthetic_words import vocabulary

WORDS = [word for word in vocabulary() if len(word) > 3]
NUM_ROWS = {"train": 64, "validation": 8, "test": 12}
Made = Callable[[random.Random], dict[str, Any]]


def sentence(chance: random.Random, fewest: int = 4, most: int = 9) -> list[str]:
    return chance.choices(WORDS, k=chance.randint(fewest, most))


def classified(chance: random.Random) -> dict[str, Any]:
    return {"text": " ".join(sentence(chance)), "label": chance.choice(["sport", "food"])}


def scored(chance: random.Random) -> dict[str, Any]:
    words = sentence(chance, 6, 12)
    return {"text": " ".join(words), "label": len(words) + chance.random()}


def labeled(chance: random.Random) -> dict[str, Any]:
    some = [name for name in ("long", "odd", "late") if chance.random() < 0.5]
    return {"text": " ".join(sentence(chance)), "label": some or ["long"]}


def tagged(chance: random.Random) -> dict[str, Any]:
    words = sentence(chance)
    tags = [chance.choice(["O", "B-PER", "B-LOC"]) for _ in words]
    return {"tokens": words, "tags": tags}


def related(chance: random.Random) -> dict[str, Any]:
    words = sentence(chance, 5)
    words[1], words[3] = f"<e1>{words[1]}</e1>", f"<e2>{words[3]}</e2>"
    return {
        "text": " ".join(words),
        "label": chance.choice(["Is-A(e1,e2)", "Is-A(e2,e1)", "Other"]),
    }


def asked(chance: random.Random) -> dict[str, Any]:
    words = sentence(chance, 6)
    start = len(" ".join(words[:2])) + 1
    answers = {"text": [words[2]], "answer_start": [start]}
    question = " ".join(sentence(chance, 2, 3))
    return {"question": question, "context": " ".join(words), "answers": answers}


def instructed(chance: random.Random) -> dict[str, Any]:
    said = [" ".join(sentence(chance, 2, 5)) for _ in range(2)]
    return {"prompt": said[0], "completion": said[1]}


def rendered(chance: random.Random) -> dict[str, Any]:
    words = sentence(chance)
    return {"source": " ".join(words), "target": " ".join(reversed(words))}


def continued(chance: random.Random) -> dict[str, Any]:
    return {"text": " ".join(sentence(chance))}


@cache
def folder_of(make: Made) -> Path:
    """Files with a split each, made once."""
    chance = random.Random(make.__name__)
    folder = cache_folder() / "made" / make.__name__
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in NUM_ROWS.items():
        lines = [json.dumps(make(chance)) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def task_recipe(
    task: dict[str, Any], make: Made, model: str, strategy: str, quantize: str
) -> Recipe:
    """A recipe for `task` on made-up rows and a tiny model; dropout off, so that runs compare."""
    recipe = Recipe.load("lora_tiny", f"model={model}", "training.dropout=0")
    composition = Composition("made", recipe.settings())
    data = {"kind": "files", "path": str(folder_of(make)), "max_length": 64}
    for key, value in {"data": data, "task": task}.items():
        composition.set(key, value, "test")
    parsed = parse_overrides([f"strategy={strategy}", f"quantize={quantize}"], "test")
    for override in parsed:
        composition.set(*override)
    return Recipe.of(composition)
