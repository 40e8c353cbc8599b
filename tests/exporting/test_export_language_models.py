"""Exported language models: the folder's own code says what the run says, and ends as it does."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_export import opened
from transformers import AutoTokenizer, GenerationConfig

import peftkit
from peftkit.cli.main import main
from peftkit.config.composition import Composition, parse_overrides
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.exporting.answers import Answers
from peftkit.exporting.proof import prove
from peftkit.inference.predictor import load_run
from peftkit.records.run_dir import RunDir
from support.run_processes import ENVIRONMENT, tensors
from support.varied_models import TEMPLATES, VariedModel, build
from support.varied_rows import pairs, talks, texts, written

QUICK = (
    "training={steps: 6, threads: 1, proof: run, batch_size: 6, precision: fp32, lr: 0.02}",
    "training.dropout=0",
)
GENERATE = {"rows": 2, "max_new_tokens": 12, "min_new_tokens": 4}
CHAT = {"kind": "instruction_tuning", "generate": GENERATE}
TRANSLATION = {"kind": "translation", "target_length": 24, "generate": GENERATE}
GOING_ON = {
    "kind": "text_generation", "prompt_words": 2, "attributes": ["old", "new"],
    "generate": GENERATE,
}  # fmt: skip
TURNS = VariedModel("llama", tied=False, chat="turns")


def openings(script: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts to go on from, each with an attribute."""
    found = texts(script, count, seed)
    return [{"text": text, "attribute": ("old", "new")[i % 2]} for i, text in enumerate(found)]


ROWS: dict[str, Any] = {
    "instruction_tuning": talks, "text_generation": openings,
    "translation": pairs, "summarization": pairs,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A model, and how it is trained."""

    model: VariedModel
    strategy: str = "{kind: lora, r: 4}"
    task: dict[str, Any] = field(default_factory=lambda: CHAT)
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}-{self.strategy}-{self.task['kind']}"


def trained(cell: Cell, folder: Path) -> Path:
    """A finished run."""
    base = build(cell.model, folder / "bases")
    recipe = Recipe.load("lora_tiny", f"model={base}")
    composition = Composition("made", recipe.settings())
    rows = written(folder / "rows", ROWS[cell.task["kind"]], ("Latin", "Han"))
    data = {"kind": "files", "path": str(rows), "max_length": 96, "truncation": "all"}
    for key, value in {"data": data, "task": cell.task}.items():
        composition.set(key, value, "test")
    chosen = [f"strategy={cell.strategy}", *QUICK, *cell.more]
    for override in parse_overrides(chosen, "test"):
        composition.set(*override)
    record = peftkit.train(Recipe.of(composition), folder / "runs")
    return folder / "runs" / record.folder_name


GIVEN = {**CHAT, "template": TEMPLATES["turns"]}
PLAIN = {**CHAT, "template": "plain", "system": "Be brief."}
PREFIX, PROMPT = "{kind: prefix, num_virtual_tokens: 4}", "{kind: prompt, num_virtual_tokens: 4}"
SLOWLY = ("training.lr=0.001",)
CELLS = [
    Cell(TURNS),
    Cell(TURNS, "{kind: prefix, num_virtual_tokens: 4, prefix_projection: true}"),
    Cell(VariedModel("qwen2", tied=False, pad="absent", chat="turns"), PROMPT),
    Cell(VariedModel("gpt2", pad="eos"), "{kind: p_tuning, num_virtual_tokens: 3}", PLAIN),
    Cell(VariedModel("llama", pad="absent"), "[{kind: dora, r: 2}, layernorm, adapter]", PLAIN,
         SLOWLY),
    Cell(VariedModel("gpt2"), "full", GOING_ON, SLOWLY),
    Cell(VariedModel("llama", tied=False), "compacter", GOING_ON),
    Cell(VariedModel("llama", tied=False, tokenizer="bytes"), "ia3",
         {**TRANSLATION, "template": "plain"}),
    Cell(VariedModel("t5", tied=False), "{kind: adapter, variant: houlsby}",
         {**TRANSLATION, "prompt": "into other words: {source}"}, SLOWLY),
    Cell(VariedModel("t5"), PREFIX, TRANSLATION),
    Cell(VariedModel("bart", tied=False), "mam",
         {**TRANSLATION, "kind": "summarization", "generate": {**GENERATE, "min_new_tokens": 6}},
         SLOWLY),
    Cell(VariedModel("marian", files="slow"), "{kind: adapter, variant: parallel}", TRANSLATION,
         SLOWLY),
    Cell(VariedModel("marian", tokenizer="wordpiece"), "{kind: lora, r: 4}", TRANSLATION,
         ("quantize=4bit", *SLOWLY)),
]  # fmt: skip


def in_batches(folder: Path, asked: list[Any]) -> list[str]:
    """What the folder's own code says to texts, in this process."""
    model, tokenizer = opened(folder).load(folder)
    generate = runpy.run_path(str(folder / "generate.py"))["generate"]
    return generate(model, tokenizer, asked)  # type: ignore[no-any-return]


def asked_of(cell: Cell) -> tuple[list[Any], list[Any]]:
    """Texts as a run is asked them, and as its folder is; some of what is said in them is spelled
    as special tokens are."""
    said = [*texts("Latin", 4, 5), *texts("Han", 2, 5), "a </s> b <|im_end|> c", "d [SEP] e <pad>"]
    kind = cell.task["kind"]
    if kind == "instruction_tuning":
        before = [{"role": "user", "content": "now"}, {"role": "assistant", "content": "never"}]
        talks = [
            [*before[: 2 * (i % 2)], {"role": "user", "content": t}] for i, t in enumerate(said)
        ]
        return [{"messages": talk} for talk in talks], talks
    if kind == "text_generation":
        rows = [{"text": text, "attribute": ("old", "new")[i % 2]} for i, text in enumerate(said)]
        return rows, [f"<|{row['attribute']}|>{row['text']}" for row in rows]
    return said, said


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_folders_own_code_says_what_the_run_says_to_a_text(cell: Cell, tmp_path: Path) -> None:
    run = trained(cell, tmp_path)
    made = peftkit.export(run, tmp_path / "to", verify="off")
    assert made.proof is None
    rows, asked = asked_of(cell)
    said = [each["generated"] for each in peftkit.predict(run, rows)]
    assert in_batches(tmp_path / "to", asked) == said
    assert len(set(said)) > 1, "one answer to all proves nothing"


def test_it_is_proven_by_its_texts_and_its_card_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, to = trained(Cell(TURNS, "{kind: adapter}"), tmp_path), tmp_path / "to"
    assert main(["export", str(run), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"texts\t10 of 10 identical, with the same end", said)
    assert re.search(r"logits differ\tlargest .* on 10 of the run's held-out rows", said)
    proof = json.loads((to / "export.json").read_text())["proof"]
    assert proof["greedy"]["equal"] == proof["greedy"]["prompts"] == proof["rows"] == 10
    base = tensors(tmp_path / "bases" / str(TURNS))
    assert "lm_head.weight" in base and tensors(to / "base") == base
    card = (to / "README.md").read_text()
    assert "chat template" in card and "vLLM and TGI take LoRA" in card
    [typed, code] = re.findall(r"```(?:python)?\n(.*?)```", card, flags=re.DOTALL)
    assert 'python load.py "a text"' in typed
    hide = "import sys; sys.modules['peftkit'] = sys.modules['peft'] = None; sys.path[0] = '.'\n"
    again = "import runpy; sys.argv = ['load.py', 'a text']; "
    again += "runpy.run_path('load.py', run_name='__main__')"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"{hide}{code}\n{again}"],
        cwd=to, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed, *written = done.stdout.splitlines()
    [ours] = peftkit.predict(run, ["a text"])
    assert ast.literal_eval(listed)[0] == "\n".join(written) == ours["generated"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with a template of the recipe's whose turns end in a token of their own, and its
    export, not proven."""
    place = tmp_path_factory.mktemp("given")
    run = trained(Cell(VariedModel("llama", tied=False, chat="given"), task=GIVEN), place)
    peftkit.export(run, place / "to", verify="off")
    return run, place / "to"


def proven(run: Path, to: Path) -> Any:
    """The proof of a folder that may have been changed since."""
    recipe, assembled, names = load_run(run)
    rows = Answers(RunDir(run), recipe, None, rows=4)
    rows.query(recipe, assembled, names)
    return prove(to, None, rows, names, "float32", None)


def test_the_folder_ends_and_writes_conversations_as_the_training_did(
    folder: tuple[Path, Path],
) -> None:
    run, to = folder
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.chat_template == TEMPLATES["turns"]
    ends = GenerationConfig.from_pretrained(to).eos_token_id
    assert sorted(ends) == sorted(
        {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    )
    assert any(peftkit.predict(run, ["a text"])), "it says something"


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("generation_config.json", r'"eos_token_id": \[[^]]*\]', '"eos_token_id": [1]'),
        ("chat_template.jinja", "assistant", "user"),
    ],
    ids=["ends", "template"],
)
def test_the_proof_sees_texts_that_are_not_the_runs(
    file: str, before: str, after: str, folder: tuple[Path, Path], tmp_path: Path
) -> None:
    run, to = folder
    shutil.copytree(to, tmp_path / "to")
    path = tmp_path / "to" / file
    changed, times = re.subn(before, after, path.read_text())
    assert times
    path.write_text(changed)
    with pytest.raises(RunError, match=r"predictions differ from the run's: .* it was removed"):
        proven(run, tmp_path / "to")


def test_texts_of_a_file_are_asked_as_they_are(folder: tuple[Path, Path]) -> None:
    run, _ = folder
    said = texts("Latin", 3, 9)
    rows = Answers(RunDir(run), RunDir(run).recipe, said)
    assert [each["messages"][-1]["content"] for each in rows.inputs()] == said
    assert rows.said_of == "the given texts"
