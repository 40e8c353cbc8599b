"""Exported runs that read marked texts: the folder marks, cuts and reads them as the run does."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import opened

import peftkit
from peftkit.cli.main import main
from peftkit.errors import RunError
from peftkit.exporting.marked import MarkedTokenizer
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.tasks.relation_extraction.entity_markers import marked
from peftkit.tasks.relation_extraction.task import RelationExtraction
from peftkit.text.special_tokens import encode_text
from support.run_processes import ENVIRONMENT
from support.task_rows import WORDS, related, task_recipe

TEXTS = [
    "the <e1>coach</e1> was near the <e2>stadium</e2> with a trophy",
    "<e2>soup and</e2><e1> bread</e1>",
    f"{'the match ' * 40} <e1>pepper</e1> after {'goal ' * 9}<e2>storm</e2> {'dog ' * 40}",
]
TRAINING = {"steps": 4, "threads": 1, "proof": "run", "batch_size": 8, "precision": "fp32"}


def trained(folder: Path, model: str, strategy: str, quantize: str = "none") -> Path:
    """A finished run."""
    recipe = task_recipe({"kind": "relation_extraction"}, related, model, strategy, quantize)
    lr = 1e-3 if strategy == "full" else 0.05
    record = peftkit.train(recipe.but(training={**TRAINING, "lr": lr}), folder)
    return folder / record.folder_name


def test_a_relations_run_is_exported_proven_and_its_card_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, to = trained(tmp_path / "runs", "tiny-bert", "{kind: lora, r: 4}"), tmp_path / "to"
    assert main(["export", str(run), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"logits differ\tlargest .* on 12 of the run's held-out rows", said)
    assert re.search(r"f1\t\S+ before, \S+ after \(n=12\)", said) and "simpler" not in said
    card = (to / "README.md").read_text()
    [typed, code] = re.findall(r"```(?:python)?\n(.*?)```", card, flags=re.DOTALL)
    assert 'python load.py "a <e1>text</e1> with <e2>marks</e2>"' in typed
    assert "no\nclass of transformers does" in card and "vLLM" not in card
    hide = "import sys; sys.modules['peftkit'] = sys.modules['peft'] = None; sys.path[0] = '.'\n"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", hide + code],
        cwd=to, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "tensor" in done.stdout, done.stderr
    with pytest.raises(
        RunError, match=r"reads the model at them.* - use peftkit export .* --to DIR"
    ):
        peftkit.merge(run, tmp_path / "merged")


CELLS = [
    ("tiny-bert", "full", "none"),
    ("tiny-roberta", "adapter", "none"),
    ("tiny-bert", "{kind: prompt, num_virtual_tokens: 4}", "none"),
    ("tiny-bert", "{kind: prefix, num_virtual_tokens: 4}", "none"),
    ("tiny-llama", "{kind: lora, r: 4}", "none"),
    ("tiny-bert", "{kind: lora, r: 4}", "4bit"),
]


@pytest.mark.parametrize(("model", "strategy", "quantize"), CELLS)
def test_every_way_and_head_says_the_same_by_its_own_code(
    model: str, strategy: str, quantize: str, tmp_path: Path
) -> None:
    run = trained(tmp_path / "runs", model, strategy, quantize)
    made = peftkit.export(run, tmp_path / "to", verify="off")
    assert not made.mergeable
    load = opened(tmp_path / "to")
    found = load.logits_of(*load.load(tmp_path / "to"), TEXTS).softmax(-1)
    said = [list(each["probabilities"].values()) for each in peftkit.predict(run, TEXTS)]
    near = 1e-5 if quantize == "none" else 1e-3
    assert torch.allclose(found, torch.tensor(said), atol=near)
    assert (found[0] - found[1]).abs().max() > 1e-4, "texts that are all one prove nothing"


def test_the_base_may_be_named_where_only_markers_and_adapters_are_new(tmp_path: Path) -> None:
    run = trained(tmp_path / "runs", "tiny-bert", "adapter")
    made = peftkit.export(run, tmp_path / "to", base="reference", verify="off")
    assert made.held == "referred"
    load = opened(tmp_path / "to")
    both = load.load(tmp_path / "to", find_model("tiny-bert").location)
    said = [list(each["probabilities"].values()) for each in peftkit.predict(run, TEXTS)]
    assert torch.allclose(load.logits_of(*both, TEXTS).softmax(-1), torch.tensor(said), atol=1e-5)


def a_text(chance: random.Random) -> tuple[str, list[int], list[int]]:
    """A text with its head and tail in characters, which may be parts of words."""
    text = " ".join(chance.choices([*WORDS, "é", "...", "Ünder", "x-y"], k=chance.randint(2, 40)))
    cuts = sorted(chance.sample(range(len(text) + 1), 4))
    parts = [cuts[:2], cuts[2:]]
    chance.shuffle(parts)
    return text, parts[0], parts[1]


@pytest.mark.parametrize("types", [None, ["ANIMAL", "AN"]])
@pytest.mark.parametrize("name", ["tiny-bert", "tiny-roberta", "tiny-llama", "tiny-t5"])
def test_texts_become_the_tokens_that_the_run_makes_of_them(name: str, types: Any) -> None:
    task, chance = RelationExtraction(types=types), random.Random(name)
    tokenizer = load_tokenizer(find_model(name).location, task)
    rows = [a_text(chance) for _ in range(60)]
    rows = [row for row in rows if all(row[0][a:b].strip() for a, b in row[1:])]
    assert len(rows) > 30
    text, head, tail = map(list, zip(*rows, strict=True))
    columns: dict[str, list[Any]] = {"text": text, "head": head, "tail": tail}
    if types:
        for role in ("head_type", "tail_type"):
            columns[role] = chance.choices(types, k=len(rows))
    for max_length in (24, 512):
        ours = task.encode(columns, tokenizer, ("a", "b"), max_length)
        tokenizer.model_max_length = max_length
        markers = dict(
            zip(task.markers(), tokenizer.convert_tokens_to_ids(list(task.markers())), strict=True)
        )
        theirs = MarkedTokenizer(tokenizer, markers, encode_text)
        as_read = task.texts_as_read(columns)
        assert [theirs.ids_of(each) for each in as_read] == ours["input_ids"]
        batch = theirs(as_read)
        assert ("token_type_ids" in batch) == ("token_type_ids" in ours)
        lengths = [len(ids) for ids in ours["input_ids"]]
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    if types is None:
        again = [marked(each) for each in as_read]
        assert [(each.text, list(each.head)) for each in again] == [(r[0], r[1]) for r in rows]


@pytest.mark.parametrize(
    "text", ["no marks", "<e1>a</e1> b", "<e1>a</e2> <e2>b</e1>", "<e1>a</e1> <e1>b</e1>",
             "</e1>a<e1> <e2>b</e2>", "<e1>a <e2>b</e2></e1>"],
)  # fmt: skip
def test_a_text_without_two_parts_is_refused_by_the_folders_own_code(text: str) -> None:
    task = RelationExtraction()
    tokenizer = load_tokenizer(find_model("tiny-bert").location, task)
    ids = tokenizer.convert_tokens_to_ids(list(task.markers()))
    with pytest.raises(ValueError, match="mark two parts, as in <e1>rain</e1>"):
        markers = dict(zip(task.markers(), ids, strict=True))
        MarkedTokenizer(tokenizer, markers, encode_text).ids_of(text)
