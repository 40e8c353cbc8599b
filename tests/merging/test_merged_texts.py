"""Merged language models, opened by plain transformers: the run's own texts, with their ends."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def benchmark() -> Any:
    """The script; its folder must not stand on the path, where it would hide other modules."""
    place = Path(__file__).parents[2] / "benchmarks" / "merged_texts.py"
    spec = importlib.util.spec_from_file_location("merged_texts", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = benchmark()
TINY = TEXTS.Size(width=64, blocks=3, tokens=700, steps=300, words=6, prompts=6, most=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "way"), [("Llama untied", "lora on 4 bits"), ("Marian", "lora"), ("T5", "lora")]
)
def test_a_merged_folder_says_what_its_run_says_by_plain_transformers(
    model: str, way: str, tmp_path: Path
) -> None:
    [found] = TEXTS.measure(model, tmp_path, tmp_path, TINY, [way])
    assert found.different == [] and found.equal_texts + found.near_ties == found.prompts == 6
    assert found.distinct > 1 and found.ended > 0, "answers that are all one prove nothing"
    assert found.clean and found.as_trained and found.pipeline is not False
    assert found.opened_as in ("LlamaForCausalLM", "MarianMTModel", "T5ForConditionalGeneration")
    assert f"| {way} | 6 | {found.equal_texts} |" in TEXTS.table([found])
