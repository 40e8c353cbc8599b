"""The factory of varied models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from peftkit.config.recipe import Recipe
from peftkit.merging.inference_settings import write_inference_settings
from peftkit.strategies.base import train_all
from support.varied_models import OWN_KIND, TEMPLATES, Chat, VariedModel, auto_class, faults
from support.varied_rows import SCRIPTS, talks, texts
from support.varied_tokenizers import DECODERS

Varied = Callable[..., Path]


@pytest.mark.parametrize("files", ["fast", "slow"])
@pytest.mark.parametrize("architecture", OWN_KIND)
def test_a_model_directory_loads_completely_and_tokenizes_every_script(
    architecture: str, files: str, varied: Varied
) -> None:
    variant = VariedModel(architecture, files=files)  # type: ignore[arg-type]
    if faults(variant):
        assert (architecture, files) == ("marian", "fast")
        return
    folder = varied(architecture, files=files)
    assert (folder / "tokenizer.json").is_file() == (files == "fast")
    _, found = auto_class(variant).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in [text for script in SCRIPTS for text in texts(script, 2)]:
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < json.loads((folder / "config.json").read_text())["vocab_size"]
        spaced = tokenizer.decode(ids, skip_special_tokens=True)
        assert spaced.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart", "marian"])
def test_untied_output_layers_have_their_own_weights(architecture: str, varied: Varied) -> None:
    files = "slow" if architecture == "marian" else "fast"
    opens = AutoModelForCausalLM if architecture in DECODERS else AutoModelForSeq2SeqLM
    for tied in (True, False):
        model = opens.from_pretrained(varied(architecture, files=files, tied=tied))
        embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
        assert (embeddings.weight.data_ptr() == output.weight.data_ptr()) == tied
        assert bool((embeddings.weight == output.weight).all()) == tied


@pytest.mark.parametrize("architecture", ["bart", "marian", "t5"])
def test_training_everything_freezes_embeddings_that_are_not_used(
    architecture: str, varied: Varied
) -> None:
    for tied in (True, False):
        folder = varied(architecture, files="slow", tied=tied)
        model = train_all(AutoModelForSeq2SeqLM.from_pretrained(folder))
        output = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[6, 7, 8]]))
        output.loss.backward()
        still = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert still == set()


@pytest.mark.parametrize("files", ["fast", "slow"])
def test_the_padding_token_is_as_requested(files: str, varied: Varied) -> None:
    def pad(which: str) -> tuple[Any, Any, int]:
        folder = varied("llama", files=files, pad=which, chat="turns")
        with safe_open(folder / "model.safetensors", "pt") as weights:
            rows = weights.get_tensor("model.embed_tokens.weight").shape[0]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return tokenizer.pad_token_id, tokenizer.eos_token_id, rows

    assert pad("own")[0] not in (None, pad("own")[1])
    assert pad("eos")[0] == pad("eos")[1]
    assert pad("absent")[0] is None
    assert pad("beyond")[0] == pad("beyond")[2]


@pytest.mark.parametrize("files", ["fast", "slow"])
def test_a_padding_token_without_an_embedding_is_not_exported(
    files: str, varied: Varied, tmp_path: Path
) -> None:
    task = Recipe.load("lora_tiny").task
    for pad in ("own", "beyond"):
        base = varied("gpt2", files=files, pad=pad)
        folder = Path(shutil.copytree(base, tmp_path / pad))
        write_inference_settings(task, base, folder)
        rows = json.loads((base / "config.json").read_text())["vocab_size"]
        found = [AutoTokenizer.from_pretrained(where).pad_token_id for where in (base, folder)]
        assert found[1] < rows and (found[0] == found[1]) == (pad == "own")


@pytest.mark.parametrize("files", ["fast", "slow"])
@pytest.mark.parametrize("chat", get_args(Chat))
def test_turns_end_as_requested(chat: str, files: str, varied: Varied) -> None:
    tokenizer = AutoTokenizer.from_pretrained(varied("mistral", files=files, chat=chat, bos=False))
    assert tokenizer.chat_template == TEMPLATES.get(chat)
    given = TEMPLATES.get(chat, TEMPLATES["turns"])
    messages = talks("Han", 2)[1]["messages"]
    encoded = tokenizer.apply_chat_template(
        messages,
        chat_template=given,
        return_dict=True,
        return_assistant_tokens_mask="marked" in chat,
    )
    ends = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id}
    found = [index for index, token in enumerate(encoded["input_ids"]) if token in ends]
    assert len(found) == {"none": 0, "eos": 2}.get(chat, 4)
    if "marked" in chat:
        assert [encoded["assistant_masks"][index] for index in found] == (
            [0, 1, 0, 1] if chat == "marked" else [0, 0, 0, 0]
        )


def test_a_bos_token_is_added_or_not(varied: Varied) -> None:
    for architecture in DECODERS:
        for bos in (True, False):
            tokenizer = AutoTokenizer.from_pretrained(varied(architecture, bos=bos))
            assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) == bos
