"""Prompts, P-tuning, prefixes and MAM: what is read, where it stands, what is saved and refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import (
    LoadedModel,
    load_config,
    load_tokenizer,
    meta_model,
    quiet_transformers,
)
from peftkit.models.prefix_attention import prefixed_attention, states_of
from peftkit.planning.plan import blocks_with_gradient
from peftkit.strategies.base import Strategy, quiet_peft, trainable
from peftkit.tasks.base import Task
from peftkit.training.checkpoints import load_trained, save_trained
from peftkit.training.optimizer import MasterWeightAdamW
from support.toy_models import NAMES, batches, call, load_toy, logits, rows, toy, train

PROMPT = "{kind: prompt, num_virtual_tokens: 5}"
P_TUNING = "{kind: p_tuning, num_virtual_tokens: 5}"
LSTM = "{kind: p_tuning, num_virtual_tokens: 5, encoder: lstm, encoder_hidden_size: 16}"
PREFIX = "{kind: prefix, num_virtual_tokens: 5}"
THROUGH_A_NETWORK = (
    "{kind: prefix, num_virtual_tokens: 5, prefix_projection: true, encoder_hidden_size: 32}"
)
MAM = "mam"
PROMPT_AND_ADAPTER = "[{kind: prompt, num_virtual_tokens: 5}, adapter]"
EVERY = [PROMPT, P_TUNING, LSTM, PREFIX, THROUGH_A_NETWORK, MAM, PROMPT_AND_ADAPTER]
READ_FIRST = ["bert", "roberta", "distilbert", "electra", "albert"]
READ_FIRST += ["deberta-v3", "modernbert", "mpnet"]
READ_LAST = ["gpt2", "llama", "mistral", "qwen3", "gemma3"]
TAKE_A_PREFIX = [n for n in READ_FIRST if n not in ("deberta-v3", "mpnet")] + READ_LAST
SOME = ["tiny-bert", "tiny-roberta", "tiny-distilbert", "tiny-llama", "tiny-gpt2"]


def made(model: str, strategy: str, *more: str) -> LoadedModel:
    return load_toy(toy(model, f"strategy={strategy}", *more))


def examples(model: str, count: int = 6) -> Any:
    return rows(model)["test"].select(range(count))


def one_by_one(this: LoadedModel, some: Any) -> Tensor:
    return torch.cat([logits(this, some.select([index])) for index in range(len(some))])


def ids_of(some: Any, index: int) -> dict[str, Tensor]:
    keys = [key for key in ("input_ids", "token_type_ids") if key in some.column_names]
    return {key: torch.tensor([some[index][key]]) for key in keys}


def plain_peft(model: str, folder: Path, config: Any) -> Any:
    """The artifact on a fresh base by PEFT alone."""
    location = find_model(model).location
    with quiet_peft(), quiet_transformers():
        base = AutoModelForSequenceClassification.from_pretrained(location, config=config)
        return PeftModel.from_pretrained(base, str(folder)).eval()


CELLS = [(f"tiny-{m}", PROMPT) for m in [*READ_FIRST, *READ_LAST]]
CELLS += [(f"tiny-{m}", PREFIX) for m in [*TAKE_A_PREFIX, "t5", "bart"]]
CELLS += [(m, s) for m in ("tiny-bert", "tiny-llama") for s in EVERY if s not in (PROMPT, PREFIX)]


@pytest.mark.parametrize(("model", "strategy"), CELLS)
def test_a_text_alone_is_read_as_in_a_batch_with_longer_ones(model: str, strategy: str) -> None:
    this, some = made(model, strategy), examples(model)
    assert len({len(tokens) for tokens in some["input_ids"]}) > 1
    together = logits(this, some)
    assert together.std(dim=0).max() > 1e-3  # the texts are told apart
    torch.testing.assert_close(together, one_by_one(this, some), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-distilbert", "tiny-electra"])
def test_an_encoder_reads_the_texts_own_first_token(model: str) -> None:
    this, some = made(model, PROMPT), examples(model)
    peft: Any = this.module
    base: Any = peft.base_model
    inside: Any = getattr(base, base.base_model_prefix)
    states: list[Tensor] = []
    body = inside.get_submodule("transformer" if model == "tiny-distilbert" else "encoder")
    # before ours, which takes the virtual tokens away
    handle = body.register_forward_hook(lambda _, __, out: states.append(out[0]), prepend=True)
    found = logits(this, some)
    handle.remove()
    assert states[0].shape[1] == max(map(len, some["input_ids"])) + 5
    first = states[0][:, 5:6]
    if model == "tiny-bert":
        expected = base.classifier(inside.pooler(first))
    elif model == "tiny-distilbert":
        expected = base.classifier(base.pre_classifier(first[:, 0]).relu())
    else:
        expected = base.classifier(first)
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta"])
def test_segments_and_positions_are_those_of_the_text_behind_the_prompt(model: str) -> None:
    this = made(model, PROMPT)
    base: Any = this.module.base_model
    inside = getattr(base, base.base_model_prefix)
    tokenizer = load_tokenizer(find_model(model).location)
    pair = tokenizer("a goal in the last minute", "soup and bread", return_tensors="pt")
    ids, length = pair["input_ids"], pair["input_ids"].shape[1]
    segments = pair.get("token_type_ids", torch.zeros_like(ids))
    assert (segments.sum() > 0) == (model == "tiny-bert")
    prompt = this.module.prompt_encoder["default"].embedding.weight
    start = 1 + base.config.pad_token_id if model == "tiny-roberta" else 0
    hidden = inside(
        inputs_embeds=torch.cat([prompt[None], inside.embeddings.word_embeddings(ids)], dim=1),
        token_type_ids=torch.cat([torch.zeros(1, 5, dtype=torch.long), segments], dim=1),
        position_ids=torch.arange(start, start + 5 + length)[None],
    )[0]  # the hook has taken the virtual tokens away
    assert hidden.shape[1] == length
    head = base.classifier(inside.pooler(hidden) if model == "tiny-bert" else hidden)
    example = {"input_ids": ids[0].tolist(), "token_type_ids": segments[0].tolist(), "labels": 0}
    longer = {"input_ids": [5] * 40, "token_type_ids": [0] * 40, "labels": 0}
    if model == "tiny-roberta":
        example.pop("token_type_ids"), longer.pop("token_type_ids")
    batch = this.batcher([example, longer])
    batch.pop("labels")
    torch.testing.assert_close(this.module(**batch).logits[:1], head, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", [PROMPT, P_TUNING, LSTM])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-gpt2"])
def test_plain_peft_loads_the_artifact_and_says_the_same_of_a_single_text(
    model: str, strategy: str, tmp_path: Path
) -> None:
    recipe = toy(model, f"strategy={strategy}")
    this, some = load_toy(recipe), examples(model)
    train(recipe, this, steps=2)
    recipe.strategy.save(this.module, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {"prompt_embeddings", "base_model.score.weight"}
    config = load_config(recipe, find_model(model).location, NAMES)
    config.pad_token_id = this.batcher.pad_id
    plain = plain_peft(model, tmp_path, config)
    with torch.no_grad():
        said = torch.cat([plain(**ids_of(some, i)).logits for i in range(len(some))])
        padded = this.batcher([some[i] for i in range(len(some))])
        ids, mask = padded["input_ids"], padded["attention_mask"]
        astray = plain(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(said, one_by_one(this, some), atol=1e-5, rtol=0)
    # what the reader is for: PEFT alone takes the last position of a padded row
    assert (astray - said).abs().max() > 1e-2


def test_plain_peft_loads_an_encoders_prompt_and_head(tmp_path: Path) -> None:
    recipe = toy("tiny-bert", f"strategy={P_TUNING}")
    this = load_toy(recipe)
    train(recipe, this, steps=2)
    recipe.strategy.save(this.module, tmp_path)
    plain: Any = plain_peft("tiny-bert", tmp_path, None)
    assert torch.equal(plain.get_prompt(1), this.module.get_prompt(1))
    head, ours = (m.base_model.classifier.modules_to_save["default"] for m in (plain, this.module))
    assert torch.equal(head.weight, ours.weight)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-llama", "tiny-gpt2"])
def test_a_prefix_is_pefts_at_the_positions_of_the_base(model: str) -> None:
    this, some = made(model, PREFIX), examples(model, 1)
    found = logits(this, some)
    states = torch.stack(list(states_of(this.module).values()))
    theirs = plain_base(model, this)
    heads, width = states.shape[2], states.shape[2] * states.shape[4]
    config = PrefixTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=5,
        num_attention_heads=heads,
        token_dim=width,
        num_layers=len(states),
    )
    with quiet_peft():
        peft: Any = get_peft_model(theirs, config)
    # PEFT's order: tokens, then layers x (key, value), heads, size
    flat = states.permute(3, 0, 1, 2, 4).reshape(5, -1)
    peft.prompt_encoder["default"].embedding.weight.data.copy_(flat)
    ids = ids_of(some, 0)
    length = ids["input_ids"].shape[1]
    start = this.batcher.first_position - 5  # which PEFT shifts by the prefix
    positions = torch.arange(start, start + length)[None]
    mask = torch.ones(1, length, dtype=torch.long)
    with torch.no_grad():
        said = peft.eval()(**ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found, said, atol=1e-5, rtol=0)


def plain_base(model: str, like: LoadedModel) -> Any:
    """A fresh base by transformers alone, with the head of `like`."""
    recipe, location = toy(model), find_model(model).location
    config = load_config(recipe, location, NAMES)
    config.pad_token_id = like.batcher.pad_id
    with quiet_transformers():
        base = AutoModelForSequenceClassification.from_pretrained(location, config=config)
    heads = {n: p for n, p in trainable(like.module).items() if ".prefix." not in n}
    missing = base.load_state_dict(heads, strict=False)
    assert heads and not missing.unexpected_keys
    return base.eval()


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_only_what_is_new_trains_and_the_artifact_holds_it(
    model: str, strategy: str, tmp_path: Path
) -> None:
    recipe = toy(model, f"strategy={strategy}")
    this = load_toy(recipe)
    was = {n: p.clone() for n, p in this.module.named_parameters() if not p.requires_grad}
    started, seen = logits(this, examples(model)), train(recipe, this)
    assert [n for n, largest in seen.gradients.items() if largest == 0] == []
    now = dict(this.module.named_parameters())
    assert [n for n, tensor in was.items() if not torch.equal(tensor, now[n])] == []
    assert [n for n, old in seen.before.items() if torch.equal(old, seen.master_weights[n])] == []
    recipe.strategy.save(this.module, tmp_path)
    again = load_toy(recipe, artifact=tmp_path)
    said = logits(again, examples(model))
    assert torch.equal(said, logits(this, examples(model))) and not torch.equal(said, started)
    bytes_on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert bytes_on_disk < 4 * this.parameters.trainable + 8192
    counted = meta_model(recipe, find_model(model).location, NAMES)[1]
    assert counted == this.parameters
    assert counted.trainable == counted.adapter + counted.head
    assert not recipe.strategy.mergeable


def test_a_reparametrized_prefix_leaves_its_network_behind(tmp_path: Path) -> None:
    recipe = toy("tiny-llama", f"strategy={THROUGH_A_NETWORK}")
    this = load_toy(recipe)
    assert any(name.endswith("prefix.wide.weight") for name in trainable(this.module))
    recipe.strategy.save(this.module, tmp_path)
    shapes = {name: tuple(t.shape) for name, t in load_file(next(tmp_path.iterdir())).items()}
    states = {f"model.layers.{i}.self_attn.prefix.states": (2, 2, 5, 16) for i in range(2)}
    assert shapes == {**states, "score.weight": (2, 64)}


@pytest.mark.parametrize("strategy", [P_TUNING, LSTM, THROUGH_A_NETWORK, MAM])
def test_a_resumed_training_goes_on_exactly(strategy: str, tmp_path: Path) -> None:
    recipe = toy("tiny-bert", f"strategy={strategy}")

    def optimizer(this: LoadedModel) -> MasterWeightAdamW:
        return MasterWeightAdamW(trainable(this.module).items(), 1e-2, 0.0, 1.0)

    def steps(this: LoadedModel, by: MasterWeightAdamW, first: int, last: int) -> None:
        for batch in list(batches(this, rows("tiny-bert")["train"], last))[first:]:
            labels = batch.pop("labels")
            recipe.task.loss(this.module(**batch).logits, labels, 0.0).backward()
            by.step()

    through = load_toy(recipe)
    by = optimizer(through)
    steps(through, by, 0, 2)
    save_trained(through.module, tmp_path / "trained.safetensors")
    torch.save(by.state_dict(), tmp_path / "optimizer.pt")
    steps(through, by, 2, 4)
    resumed = load_toy(recipe)
    load_trained(resumed.module, tmp_path / "trained.safetensors")
    by = optimizer(resumed)
    by.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(resumed, by, 2, 4)
    for name, parameter in trainable(through.module).items():
        assert torch.equal(parameter, trainable(resumed.module)[name]), name


PREFIXES = [PREFIX, THROUGH_A_NETWORK, MAM]
CHECKPOINTED = [(m, s) for m in ("tiny-bert", "tiny-gpt2") for s in [*PREFIXES, PROMPT]]
CHECKPOINTED += [("tiny-t5", strategy) for strategy in PREFIXES]


@pytest.mark.parametrize(("model", "strategy"), CHECKPOINTED)
def test_gradient_checkpointing_drops_nothing(model: str, strategy: str) -> None:
    kept, recomputed = (
        toy(model, f"strategy={strategy}", f"training.gradient_checkpointing={on}")
        for on in ("false", "true")
    )
    seen, again = (train(r, load_toy(r), steps=3) for r in (kept, recomputed))
    assert again.losses == pytest.approx(seen.losses, abs=1e-6)
    assert again.gradients == pytest.approx(seen.gradients, rel=1e-3, abs=1e-6)
    assert min(again.gradients.values()) > 0


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize(
    ("model", "strategy"),
    [("tiny-gpt2", PREFIX), ("tiny-gpt2", PROMPT), ("tiny-bert", MAM), ("tiny-roberta", P_TUNING)],
)
def test_a_quantized_base_carries_them(
    model: str, strategy: str, quantize: str, tmp_path: Path
) -> None:
    recipe = toy(model, f"strategy={strategy}", f"quantize={quantize}")
    this = load_toy(recipe)
    seen = train(recipe, this)
    assert min(seen.gradients.values()) > 0
    recipe.strategy.save(this.module, tmp_path)
    again = load_toy(recipe, artifact=tmp_path)
    assert torch.equal(logits(again, examples(model)), logits(this, examples(model)))
    assert meta_model(recipe, find_model(model).location, NAMES)[1] == this.parameters


@pytest.mark.parametrize("strategy", [PROMPT, THROUGH_A_NETWORK])
def test_gradients_of_micro_batches_add_up_to_the_batchs(strategy: str) -> None:
    this, some = made("tiny-bert", strategy), examples("tiny-bert", 8)

    def gradients(parts: list[range]) -> dict[str, Tensor]:
        this.module.zero_grad()
        for part in parts:
            call(this, some.select(part)).square().sum().backward()
        return {n: p.grad.clone() for n, p in trainable(this.module).items() if p.grad is not None}

    whole, halves = gradients([range(8)]), gradients([range(4), range(4, 8)])
    assert whole.keys() == trainable(this.module).keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, halves[name], atol=1e-5, rtol=1e-4)


def test_a_prompt_starts_from_the_words_it_is_told_repeated() -> None:
    this: Any = made(
        "tiny-llama", "{kind: prompt, num_virtual_tokens: 5, init_text: the goal}"
    ).module
    tokenizer = load_tokenizer(find_model("tiny-llama").location)
    ids = tokenizer("the goal", add_special_tokens=False)["input_ids"]
    words = this.base_model.model.embed_tokens.weight[(ids * 5)[:5]]
    assert torch.equal(this.prompt_encoder["default"].embedding.weight, words)


def test_a_prompt_without_a_text_starts_from_words_drawn_by_the_seed() -> None:
    prompts = [
        made("tiny-bert", PROMPT, f"training.seed={seed}").module.prompt_encoder["default"]
        for seed in (0, 0, 1)
    ]
    words = made("tiny-bert", PROMPT).module.word_embeddings.weight
    first, second, third = (prompt.embedding.weight for prompt in prompts)
    assert all(any(torch.equal(row, word) for word in words) for row in first)
    assert torch.equal(first, second) and not torch.equal(first, third)


def refusal(model: str, strategy: str, *more: str) -> str:
    """What is said before anything is loaded: the model's folder has no weights."""
    recipe = toy(model, f"strategy={strategy}", *more)
    with pytest.raises(RecipeError) as caught:
        load_config(recipe, find_model(model).location, NAMES)
    return str(caught.value)


def test_a_text_that_the_prompt_cannot_hold_is_refused() -> None:
    said = refusal(
        "tiny-bert", "{kind: prompt, num_virtual_tokens: 2, init_text: the goal of the day}"
    )
    assert (
        "strategy.init_text: is 8 tokens long, the prompt 2 - use strategy.num_virtual_tokens=8"
        in said
    )
    assert "strategy.init_text: ' ' gives no token - write a word" in refusal(
        "tiny-bert", "{kind: prompt, init_text: ' '}"
    )


def test_a_plan_needs_neither_weights_nor_a_tokenizer(tmp_path: Path) -> None:
    location = Path(find_model("tiny-bert").location)
    shutil.copy(location / "config.json", tmp_path)
    recipe = toy("tiny-bert", "strategy={kind: prompt, num_virtual_tokens: 5, init_text: the goal}")
    module, counted = meta_model(recipe, str(tmp_path), NAMES)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert counted.adapter == 5 * 64


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("strategy", [PROMPT, P_TUNING, PROMPT_AND_ADAPTER])
def test_virtual_tokens_need_positions(model: str, strategy: str) -> None:
    positions = 130 - (AutoConfig.from_pretrained(find_model(model).location).pad_token_id or 0) - 1
    most = positions if model == "tiny-roberta" else 130
    said = refusal(model, strategy, f"data.max_length={most - 4}")
    assert f"data.max_length: the model reads at most {most} tokens, of which the strategy takes 5 "
    assert f"(got {most - 4}) - use data.max_length={most - 5} or fewer virtual tokens" in said
    recipe = toy(model, f"strategy={strategy}", f"data.max_length={most - 5}")
    this = load_toy(recipe)
    longest = {"input_ids": [7] * (most - 5), "token_type_ids": [0] * (most - 5), "labels": 0}
    batch = this.batcher([{k: v for k, v in longest.items() if k in rows(model)["test"].features}])
    batch.pop("labels")
    assert this.module(**batch).logits.isfinite().all()


def test_a_prompt_longer_than_the_model_reads_is_refused() -> None:
    said = refusal("tiny-bert", "{kind: prompt, num_virtual_tokens: 130}")
    assert (
        "strategy.num_virtual_tokens: the model reads at most 130 tokens (got 130 virtual ones)"
        in said
    )


def test_a_prefix_takes_no_position() -> None:
    recipe = toy("tiny-bert", f"strategy={PREFIX}", "data.max_length=130")
    assert load_config(recipe, find_model("tiny-bert").location, NAMES)


@pytest.mark.parametrize(
    ("model", "strategy", "said"),
    [
        ("tiny-t5", PROMPT, "a t5 classifier finds the end of a text in token ids"),
        ("tiny-bart", P_TUNING, "a bart classifier finds the end of a text in token ids"),
        ("tiny-deberta-v3", PREFIX, "deberta-v2 computes attention in a way that takes no prefix"),
        ("tiny-mpnet", MAM, "mpnet computes attention in a way that takes no prefix - use strat"),
        ("tiny-t5", PROMPT_AND_ADAPTER, "use strategy=prefix or strategy=lora"),
    ],
)
def test_what_a_model_cannot_take_is_refused_with_what_it_can(
    model: str, strategy: str, said: str
) -> None:
    assert said in refusal(model, strategy)


@pytest.mark.parametrize(("kind", "said"), [("prompt", "reads"), ("prefix", "attends")])
def test_an_unknown_architecture_is_refused(kind: str, said: str) -> None:
    strategy, task = Strategy.parse(kind, "strategy"), Task.parse("text_classification", "task")
    (fault,) = strategy.incompatibilities(AutoConfig.for_model("opt"), task)
    assert said in fault.what and "opt" in fault.what and "use strategy=lora" in fault.what


def test_a_mean_over_the_text_is_not_taken_over_a_prompt() -> None:
    config = AutoConfig.for_model("modernbert", classifier_pooling="mean")
    task = Task.parse("text_classification", "task")
    (fault,) = Strategy.parse("prompt", "strategy").incompatibilities(config, task)
    assert "part of the mean that this modernbert classifier reads" in fault.what
    assert Strategy.parse("prefix", "strategy").incompatibilities(config, task) == []


def test_a_width_without_a_network_is_refused() -> None:
    with pytest.raises(RecipeError, match="encoder_hidden_size=8: there is no network"):
        toy("tiny-bert", "strategy={kind: prefix, encoder_hidden_size: 8}")


def test_mam_is_a_prefix_and_a_parallel_adapter() -> None:
    recipe = toy("tiny-bert", "strategy=mam")
    kinds = [part["kind"] for part in recipe.settings()["strategy"]["parts"]]
    assert kinds == ["prefix", "adapter"]
    names = trainable(load_toy(recipe).module)
    for part in (".prefix.", ".adapter_parallel.", "classifier."):
        assert any(part in f".{name}" for name in names), part
    written = recipe.settings()
    assert Recipe.load("lora_tiny", strategy=written["strategy"]).strategy == recipe.strategy


def test_causal_attention_never_goes_without_its_mask() -> None:
    recipe = toy("tiny-llama", f"strategy={PREFIX}")
    attention = load_toy(recipe).module.model.layers[0].self_attn  # type: ignore[union-attr]
    states = torch.randn(1, 2, 3, 16)
    with pytest.raises(ValueError, match="needs a mask"):
        prefixed_attention(attention, states, states, states, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", SOME)
def test_every_prefix_is_attended_to(model: str) -> None:
    this, some = made(model, PREFIX), examples(model)
    for name, module in this.module.named_modules():
        if not name.endswith(".prefix"):
            continue
        before = logits(this, some)
        with torch.no_grad():
            module.states[1] += 1.0  # type: ignore[operator,index]
        assert (logits(this, some) - before).abs().max() > 1e-5, name


@pytest.mark.parametrize("strategy", [PROMPT, THROUGH_A_NETWORK, PROMPT_AND_ADAPTER])
def test_a_real_run_is_planned_proven_and_predicts(strategy: str, tmp_path: Path) -> None:
    settings = {"steps": 6, "proof": "run", "threads": 1, "evaluate": 2, "batch_size": 8}
    recipe = toy("tiny-bert", f"strategy={strategy}").but(training=settings)
    record = peftkit.train(recipe, tmp_path)
    assert record.proof is not None and record.proof.status == "proven"
    assert record.parameters == peftkit.plan(recipe).parameters
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert [said["label"] in NAMES for said in peftkit.predict(folder, ["a goal", "soup"])]


def test_a_plan_reckons_with_virtual_tokens_in_every_block() -> None:
    short, long = (
        peftkit.plan(toy("tiny-bert", f"strategy={{kind: prompt, num_virtual_tokens: {tokens}}}"))
        for tokens in (1, 60)
    )
    assert long.memory.activations > 1.5 * short.memory.activations
    for model in ("tiny-bert", "tiny-llama"):
        for strategy in EVERY:
            recipe = toy(model, f"strategy={strategy}")
            module, _ = meta_model(recipe, find_model(model).location, NAMES)
            assert blocks_with_gradient(module) == 2, (model, strategy)
