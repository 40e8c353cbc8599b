"""Data files for tests: rows written as each format, and read as a recipe reads them."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.base import Data
from peftkit.data.splits import Splits
from peftkit.data.validation import Need

ROLES = {"text": True, "text_pair": False, "label": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def load(path: Path, roles: Mapping[str, Need] = ROLES, **settings: Any) -> Splits:
    data = Data.parse({"kind": "files", "path": str(path), **settings}, "data")
    return data.load(data.resolve(), roles)


def some_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Different texts; every third is 'bad', in label order as IMDB is."""
    words = random.Random(seed)
    labels = ["bad"] * (count // 3) + ["good"] * (count - count // 3)
    return [{"text": f"text {words.random()}", "label": label} for label in labels]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        import csv

        mark = "\t" if path.suffix == ".tsv" else ","
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=mark)
            table.writeheader()
            table.writerows(rows)
    return path
