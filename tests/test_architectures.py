"""Architectures: where blocks, heads and layers stand, and which token is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_attention import TESTED, texts
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftkit.architectures import (
    ARCHITECTURES,
    architecture_of,
    base_of,
    blocks_of,
    first_position,
    head_names,
    linear_layers,
    matching,
)
from peftkit.errors import RecipeError
from peftkit.model import assemble, load_tokenizer
from peftkit.sources import find_model
from toys import NAMES, assembled, call, logits, rows, toy

HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "electra": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
}
LINEAR_LAYERS_A_BLOCK = {"bert": 6, "roberta": 6, "electra": 6, "distilbert": 6, "gpt2": 4}
DECODERS = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gpt2"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STRANGERS: dict[str, dict[str, Any]] = {
    "albert": {**SMALL, "embedding_size": 16, "intermediate_size": 64, "initializer_range": 0.1},
    "deberta-v2": {
        **SMALL,
        "intermediate_size": 64,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "initializer_range": 0.1,
    },
    "mpnet": {**SMALL, "intermediate_size": 64, "initializer_range": 0.1},
}


def blank(model: str) -> Any:
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(find_model(model).location)
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("model", TESTED)
def test_the_table_names_layers_that_are_there(model: str) -> None:
    made = blank(model)
    kind = made.config.model_type
    entry = architecture_of(made, "a test")
    blocks = blocks_of(made)
    assert len(blocks) == 2
    for _, block in blocks:
        for path in (entry.attention_output, entry.feed_forward_input, entry.feed_forward_output):
            assert type(block.get_submodule(path)).__name__ in ("Linear", "Conv1D")
    if entry.reads == "first":
        base_of(made).get_submodule(entry.encoder)
    assert head_names(made) == HEADS.get(kind, ["score"])
    assert len(linear_layers(made)) == 2 * LINEAR_LAYERS_A_BLOCK.get(kind, 7)


def test_experts_are_not_taken_for_blocks() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))

    model: Any = torch.nn.Module()
    model.layers = torch.nn.ModuleList(Block() for _ in range(3))
    assert [name for name, _ in blocks_of(model)] == ["layers.0", "layers.1", "layers.2"]


def test_a_target_may_be_a_name_or_the_end_of_one() -> None:
    names = ["encoder.0.attention.query", "encoder.0.output.dense", "encoder.1.output.dense"]
    assert matching(["query"], names, "strategy.targets") == names[:1]
    assert matching(["output.dense", "query"], names, "strategy.targets") == names
    with pytest.raises(RecipeError) as caught:
        matching(["qeury", "dense", "nse"], names, "strategy.targets")
    assert "strategy.targets: no layer of this model is called 'qeury'" in str(caught.value)
    assert "those that would match: attention.query, output.dense" in str(caught.value)
    assert "'nse'" in str(caught.value) and "'dense'" not in str(caught.value)


def test_robertas_positions_count_on_from_its_padding_id() -> None:
    roberta = AutoConfig.for_model("roberta", pad_token_id=1)
    assert first_position(roberta) == 2
    assert first_position(AutoConfig.for_model("bert")) == 0
    assert first_position(AutoConfig.for_model("albert")) == 0


@pytest.mark.parametrize("model", DECODERS)
@pytest.mark.parametrize("packing", ["auto", "off"])
@torch.no_grad()
def test_a_decoder_reads_the_last_token_even_where_padding_looks_like_an_end(
    model: str, packing: str
) -> None:
    recipe = toy(model, f"training.packing={packing}")
    source = find_model(model)
    tokenizer = load_tokenizer(source.location)
    expected = call(assemble(recipe, source, tokenizer, NAMES, "fp32"), texts(model))
    tokenizer.pad_token = tokenizer.eos_token  # every text ends in it, too
    made = assemble(recipe, source, tokenizer, NAMES, "fp32")
    assert made.batcher.pad_id == texts(model)[0]["input_ids"][-1]
    together = call(made, texts(model))
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    ids = [torch.tensor([text["input_ids"]]) for text in texts(model)]
    last = [last_states_score(made.module, row) for row in ids]
    torch.testing.assert_close(together, torch.cat(last), atol=1e-5, rtol=1e-5)


def last_states_score(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """The head on the last token's hidden state, by the model's parts."""
    model = module.get_base_model()
    lengths = {"sequence_lengths": (ids.shape[1],)}
    keywords = lengths if model.config._attn_implementation == "peftkit_packed" else {}
    states = base_of(model)(input_ids=ids, **keywords).last_hidden_state
    return model.score(states[:, -1])


@pytest.mark.parametrize("kind", STRANGERS)
@torch.no_grad()
def test_an_unknown_architecture_is_padded_and_says_so(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_model("tiny-llama").location)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **STRANGERS[kind], vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert kind not in ARCHITECTURES
    made = assembled(toy(str(tmp_path), "strategy=full"))
    assert not made.batcher.packed
    assert made.notes == (f"padded: packing is not proven for {kind}",)
    examples = rows("tiny-llama")["test"]
    alone = torch.cat([logits(made, [examples[i]]) for i in range(len(examples))])
    torch.testing.assert_close(logits(made, examples), alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(RecipeError, match=f"strategy=adapter does not know .* '{kind}'"):
        assembled(toy(str(tmp_path), "strategy=adapter"))
