"""What stands beside merged weights: plain transformers reads, writes and ends as the run did."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from peftkit.loading.model import load_tokenizer
from peftkit.merging.inference_settings import write_inference_settings
from peftkit.merging.metadata_files import TOKENIZER_FILES
from peftkit.tasks.base import Task
from peftkit.text.special_tokens import encode_text
from support.coded_translation import CODES, model_of
from support.varied_models import TEMPLATES, VariedModel, build

QUESTIONS = {"question": ["the old bread", "where is </s> the river"], "answer": ["near", "quiet"]}


def written(folder: Path, base: Path, task: dict[str, Any]) -> Task:
    """The task, once `folder` has what a merge of its runs on `base` has beside the weights."""
    folder.mkdir()
    for pattern in (*TOKENIZER_FILES, "generation_config.json"):
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(base / "config.json", folder / "config.json")
    parsed = Task.parse(task, "task")
    write_inference_settings(parsed, base, folder)
    return parsed


@pytest.mark.parametrize(
    ("model", "template"),
    [
        (VariedModel("llama", chat="given", pad="absent"), TEMPLATES["turns"]),
        (VariedModel("mistral", chat="turns"), TEMPLATES["eos"]),
        (VariedModel("gpt2", chat="turns", files="slow", bos=False), "plain"),
        (VariedModel("llama", chat="marked", pad="eos"), "plain"),
        (VariedModel("qwen2", chat="turns"), None),
    ],
    ids=str,
)
def test_conversations_are_written_and_end_as_they_did_in_training(
    model: VariedModel, template: str | None, tmp_path: Path
) -> None:
    base, folder = build(model, tmp_path), tmp_path / "folder"
    said = {"kind": "instruction_tuning", **({"template": template} if template else {})}
    task: Any = written(folder, base, said)
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(str(base), task)
    asked = [{"role": "user", "content": QUESTIONS["question"][0]}]
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert found == task.prompts(QUESTIONS, ours, 100)[0]
    how = GenerationConfig.from_pretrained(folder)
    turn = template not in ("plain", TEMPLATES["eos"])
    ends = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(["<|im_end|>"] * turn))}
    assert {*how.eos_token_id} == ends
    assert tokenizer.pad_token == ours.pad_token and how.pad_token_id == tokenizer.pad_token_id
    assert how.max_new_tokens == 128 and not how.do_sample


def test_how_the_recipe_generates_stands_in_the_folder(tmp_path: Path) -> None:
    base = build(VariedModel("bart"), tmp_path)
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "no_repeat_ngram_size": 3}))
    how = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 11, "num_beams": 2}
    written(tmp_path / "drawn", base, {"kind": "summarization", "generate": how})
    found = GenerationConfig.from_pretrained(tmp_path / "drawn")
    assert (found.do_sample, found.temperature, found.top_p, found.num_beams) == (True, 0.7, 0.9, 2)
    assert found.max_new_tokens == 11 and found.top_k == 0 and not found.no_repeat_ngram_size
    config = json.loads((base / "config.json").read_text())
    assert found.decoder_start_token_id == config["decoder_start_token_id"]


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (VariedModel("bert"), {"kind": "text_classification"}),
        (VariedModel("llama", pad="absent"), {"kind": "text_classification"}),
        (VariedModel("bart"), {"kind": "translation"}),
        (VariedModel("marian", files="slow"), {"kind": "translation"}),
    ],
    ids=str,
)
def test_special_tokens_in_texts_are_text_as_they_were_in_training(
    model: VariedModel, task: dict[str, Any], tmp_path: Path
) -> None:
    base, folder = build(model, tmp_path), tmp_path / "folder"
    ours = load_tokenizer(str(base), written(folder, base, task))
    end = ours.eos_token or ours.sep_token
    texts = [f"the old {end} bread", "where is the river"]
    found = AutoTokenizer.from_pretrained(folder)(texts, padding=True)["input_ids"]
    expected = encode_text(ours, texts, padding=True)["input_ids"]
    assert found == expected != ours(texts, padding=True)["input_ids"]


@pytest.mark.parametrize("kind", ["mbart", "m2m_100"])
def test_languages_are_those_of_the_task(kind: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base, (source, target) = model_of(kind, tmp_path / "base"), CODES[kind]
    task: Any = written(tmp_path / "folder", base, {"kind": "translation", "codes": CODES[kind]})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == (source, target)
    rows, ours = {"source": ["the dog was near"]}, load_tokenizer(str(base), task)
    assert tokenizer(rows["source"])["input_ids"] == task.prompts(rows, ours, 64)
    first = GenerationConfig.from_pretrained(tmp_path / "folder").forced_bos_token_id
    assert first == tokenizer.convert_tokens_to_ids(target)


def test_tokens_that_a_task_adds_are_still_found_in_texts(tmp_path: Path) -> None:
    base = build(VariedModel("bert"), tmp_path)
    written(tmp_path / "folder", base, {"kind": "relation_extraction"})
    said = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text())
    assert "split_special_tokens" not in said
