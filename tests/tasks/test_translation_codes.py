"""Translation between languages that have codes: mBART's and NLLB's real classes, at toy size."""

from typing import Any

import pytest
import torch

from peftkit.errors import DataError
from peftkit.evaluation.generation import generate_answers
from support.coded_translation import CODES, model_of
from support.conversations import PAIRS, encoded, made, stirred, summed, talk


@pytest.fixture(scope="module", params=list(CODES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind's codes and its folder."""
    return CODES[request.param], model_of(request.param, tmp_path_factory.mktemp(request.param))


def recipe_for(model: Any, codes: tuple[str, str] | None = None) -> Any:
    (source, target), folder = model
    said = ", ".join(codes or (source, target))
    lengths = "target_length: 48, generate: {max_new_tokens: 48}"
    return talk(str(folder), f"{{kind: translation, codes: [{said}], {lengths}}}")


def test_sources_and_targets_stand_in_their_languages(model: Any) -> None:
    recipe = recipe_for(model)
    assembled = made(recipe)
    tokenizer = assembled.tokenizer
    source, target = map(tokenizer.convert_tokens_to_ids, model[0])
    for example in encoded(recipe, assembled, PAIRS):
        assert example["input_ids"][0] == source and target not in example["input_ids"]
        assert example["labels"][0] == target and example["labels"][-1] == tokenizer.eos_token_id


def test_the_loss_is_transformers_own(model: Any) -> None:
    recipe = recipe_for(model)
    assembled = stirred(made(recipe))
    examples = encoded(recipe, assembled, PAIRS)
    found, known = summed(recipe, assembled, examples)
    expected = torch.zeros(())
    for example in examples:
        ids, labels = (torch.tensor([example[key]]) for key in ("input_ids", "labels"))
        start = torch.cat([torch.tensor([[2]]), labels[:, :-1]], dim=1)
        plain: Any = assembled.module
        # past the hook by which ours computes logits only where they are read
        logits = plain.base_model.model.model(input_ids=ids, decoder_input_ids=start)[0]
        logits = logits @ plain.get_output_embeddings().weight.T
        expected = expected + torch.nn.functional.cross_entropy(
            logits[0], labels[0], reduction="sum"
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert known == sum(len(example["labels"]) for example in examples)


def test_answers_begin_with_the_targets_code(model: Any) -> None:
    recipe = recipe_for(model).but(**{"task.generate": {"max_new_tokens": 6}})
    assembled = stirred(made(recipe))
    tokenizer, how = assembled.tokenizer, recipe.task.generate
    said = generate_answers(recipe, assembled, {"source": PAIRS["source"]}, recipe.task, how)
    target = tokenizer.convert_tokens_to_ids(model[0][1])
    for text, source in zip(said, PAIRS["source"], strict=True):
        ids = torch.tensor([tokenizer(source)["input_ids"]])
        plain = assembled.module.generate(  # type: ignore[operator]
            input_ids=ids,
            forced_bos_token_id=target,
            max_new_tokens=6,
            do_sample=False,
            num_beams=1,
        )
        assert plain[0, 1] == target
        assert text == tokenizer.decode(plain[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("way", ["lora", "adapter", "ia3", "prefix", "mam", "frozen", "full"])
def test_every_family_of_strategies_learns_from_a_batch_what_it_does_from_its_rows(
    way: str, model: Any
) -> None:
    recipe = recipe_for(model).but(strategy=way)
    assembled = stirred(made(recipe))
    examples = encoded(recipe, assembled, PAIRS)
    together, _ = summed(recipe, assembled, examples)
    apart = sum(summed(recipe, assembled, [example])[0] for example in examples)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    together.backward()
    trained = [(n, p) for n, p in assembled.module.named_parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for _, p in trained)


def test_no_layers_are_left_out_of_a_frozen_base_or_without_dropout(model: Any) -> None:
    def left_out(*overrides: str) -> list[float]:
        task = "{kind: translation, target_length: 48, generate: null}"
        config = made(talk(str(model[1]), task, *overrides)).module.config
        return [config.encoder_layerdrop, config.decoder_layerdrop]  # type: ignore[union-attr]

    own = [0.05, 0.05] if "eng_Latn" in model[0] else [0, 0]
    assert left_out("training.dropout=auto") == left_out("strategy=full") == [0, 0]
    assert left_out("strategy=full", "training.dropout=auto") == own
    assert left_out("training.dropout=0.2") == own


def test_a_language_that_the_tokenizer_lacks_is_refused(model: Any) -> None:
    recipe = recipe_for(model, ("xx_XX", model[0][1]))
    with pytest.raises(DataError, match="has no language 'xx_XX'"):
        encoded(recipe, made(recipe), PAIRS)
