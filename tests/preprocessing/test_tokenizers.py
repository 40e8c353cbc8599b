"""A tokenizer that is not whole, or not the model's, is refused before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, PeftkitError, RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_config, load_model, load_tokenizer
from peftkit.preprocessing.tokenizers import check_token_ids
from peftkit.tasks.language_modeling.instruction_tuning import InstructionTuning
from peftkit.tasks.language_modeling.text_generation import TextGeneration
from peftkit.tasks.text_classification import TextClassification
from peftkit.text.special_tokens import encode_text

Varied = Callable[..., Path]
WANTED = {
    "bert": "vocab.txt", **dict.fromkeys(("roberta", "gpt2", "qwen2"), "vocab.json and merges.txt"),
    "llama": "tokenizer.model", "mistral": "",
    "t5": "spiece.model", "deberta-v2": "spm.model",
    "marian": "source.spm and target.spm and vocab.json",
}  # fmt: skip


def bare(folder: Path, to: Path, *also: str) -> Path:
    """The model's configuration and weights alone, and what else is named."""
    to.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", *also):
        shutil.copy(folder / name, to)
    return to


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("architecture", WANTED)
def test_a_folder_without_its_vocabulary_is_refused_by_the_names_of_its_files(
    architecture: str, named: bool, varied: Varied, tmp_path: Path
) -> None:
    whole = varied(architecture, files="slow" if architecture == "marian" else "fast")
    folder = bare(whole, tmp_path / "bare", *["tokenizer_config.json"] * named)
    with pytest.raises(DataError) as caught:
        load_tokenizer(str(folder))
    said = str(caught.value)
    assert str(folder) in said and "has no tokenizer (" in said
    assert f"tokenizer.json is missing{', and so is ' * bool(WANTED[architecture])}" in said
    assert WANTED[architecture] in said and "copy the tokenizer's files from where" in said


@pytest.mark.parametrize(
    ("architecture", "gone"),
    [("gpt2", "merges.txt"), ("marian", "target.spm"), ("marian", "vocab.json")],
)
def test_one_file_of_several_is_missed_by_its_name(
    architecture: str, gone: str, varied: Varied, tmp_path: Path
) -> None:
    folder = tmp_path / "less"
    shutil.copytree(varied(architecture, files="slow"), folder)
    (folder / gone).unlink()
    with pytest.raises(DataError, match=f"and so is {gone}"):
        load_tokenizer(str(folder))


def test_a_vocabulary_that_cannot_be_read_is_said_to_be_so(varied: Varied, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(varied("bert"), folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="its tokenizer cannot be read"):
        load_tokenizer(str(folder))


def test_a_package_that_is_missing_is_named(
    varied: Varied, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("\nT5Tokenizer requires the SentencePiece library\nmore of it")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(DataError, match="not installed: T5Tokenizer requires the SentencePiece"):
        load_tokenizer(str(varied("t5")))


def test_a_plan_refuses_what_a_run_refuses(varied: Varied, tmp_path: Path) -> None:
    folder = bare(varied("bert"), tmp_path / "bare")
    recipe = Recipe.load("lora_tiny", f"model={folder}")
    for refuse in (peftkit.plan, lambda r: peftkit.train(r, tmp_path / "runs")):
        with pytest.raises(PeftkitError, match=r"and so is vocab\.txt"):
            refuse(recipe)
    assert not list((tmp_path / "runs").glob("*/log.jsonl"))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gpt2"])
def test_padding_without_a_row_is_done_by_another_token_and_said(
    architecture: str, varied: Varied
) -> None:
    folder = varied(architecture, pad="beyond")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    recipe = Recipe.load("lora_tiny", f"model={folder}")
    tokenizer = load_tokenizer(str(folder), recipe.task)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < rows
    made = load_model(recipe, find_model(str(folder)), tokenizer, ("a", "b"), "fp32")
    (note,) = [note for note in made.notes if "padding token" in note]
    assert note == (
        f"the padding token '<|added_padding|>' (id {rows}) has no row in the model's {rows} "
        f"embeddings: {tokenizer.eos_token!r} pads in its place"
    )
    encoded = encode_text(tokenizer, ["the <|added_padding|> river"])["input_ids"][0]
    assert max(encoded) < rows
    assert not load_tokenizer(str(varied(architecture))).notes


def with_token(folder: Path, to: Path, special: bool, **also: Any) -> Path:
    """The model with a token in its tokenizer that it never learned."""
    shutil.copytree(folder, to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    tokenizer.add_tokens(["<new>", "<newer>"], special_tokens=special)
    for name, value in also.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(to)
    return to


def test_a_token_that_texts_can_become_must_have_a_row(varied: Varied, tmp_path: Path) -> None:
    folder = with_token(varied("gpt2"), tmp_path / "base", special=False)
    recipe = Recipe.load("lora_tiny", f"model={folder}")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    for refuse in (peftkit.plan, lambda r: peftkit.train(r, tmp_path / "runs")):
        with pytest.raises(RecipeError) as caught:
            refuse(recipe)
        said = str(caught.value)
        assert f"model: its tokenizer has '<new>' (id {rows}), '<newer>' (id {rows + 1})" in said
        assert f"embeddings have {rows} rows" in said
        assert f"resize_token_embeddings({rows + 2})" in said


def test_a_special_token_needs_a_row_only_where_something_writes_it(
    varied: Varied, tmp_path: Path
) -> None:
    folder = with_token(varied("qwen2"), tmp_path / "base", special=True)
    for task in (TextClassification(), TextGeneration(), InstructionTuning(template="plain")):
        load_tokenizer(str(folder), task)
    with pytest.raises(RecipeError, match="<newer>"):
        load_tokenizer(str(folder), InstructionTuning(template="{{ messages }}<newer>"))
    ended = with_token(varied("qwen2"), tmp_path / "ended", special=True, eos_token="<new>")
    with pytest.raises(RecipeError, match="<new>"):
        load_tokenizer(str(ended), TextGeneration())


def test_markers_of_a_task_get_rows_and_are_not_refused(varied: Varied) -> None:
    folder = varied("llama", pad="beyond")
    tokenizer = load_tokenizer(str(folder), TextGeneration(attributes=["calm"]))
    assert tokenizer.rows is None and tokenizer.pad_token == tokenizer.eos_token


def test_padding_that_the_configuration_names_without_a_row_is_forgotten(
    varied: Varied, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(varied("llama", pad="beyond"), folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "pad_token_id": said["vocab_size"]}))
    recipe = Recipe.load("lora_tiny", f"model={folder}")
    assert load_config(recipe, str(folder), ("a", "b")).pad_token_id is None
    tokenizer = load_tokenizer(str(folder), recipe.task)
    made = load_model(recipe, find_model(str(folder)), tokenizer, ("a", "b"), "fp32")
    assert made.module.config.pad_token_id == tokenizer.eos_token_id


def test_an_encoded_token_without_a_row_is_refused_however_it_came_about(varied: Varied) -> None:
    tokenizer = load_tokenizer(str(varied("gpt2")))
    rows = tokenizer.rows
    whole = Dataset.from_dict({"input_ids": [[1, rows - 1]]})
    check_token_ids({"train": whole, "test": whole.select([])}, tokenizer)
    with pytest.raises(RecipeError, match=rf"\(id {rows}\), and its embeddings have {rows} rows"):
        check_token_ids({"train": Dataset.from_dict({"input_ids": [[1], [rows]]})}, tokenizer)


def test_a_question_that_is_cut_to_leave_room_for_an_answer_is_told_of(varied: Varied) -> None:
    folder, task = varied("gpt2"), "task={kind: text_generation, generate: {max_new_tokens: 100}}"
    recipe = Recipe.load("lora_tiny", f"model={folder}", task, "data.max_length=60")
    tokenizer = load_tokenizer(str(folder), recipe.task)
    notes = load_model(recipe, find_model(str(folder)), tokenizer, (), "fp32").notes
    assert "prompts are truncated to 30 tokens to leave room for the generated ones" in notes
    short = recipe.but(data={"max_length": 30})
    notes = load_model(short, find_model(str(folder)), tokenizer, (), "fp32").notes
    assert not any("questions" in note for note in notes)
