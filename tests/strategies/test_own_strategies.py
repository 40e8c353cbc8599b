"""peftkit's own strategies: what each trains and at which pace, alone and in combination."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_behavior_matrix import padded_logits
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError, nearest_divisors
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, meta_model
from peftkit.models.architectures import blocks_of, parameter_depths
from peftkit.models.kronecker import KroneckerLinear, Rule
from peftkit.models.parameters import base_parameters
from peftkit.models.quantization import dequantized
from peftkit.planning.plan import blocks_with_gradient
from peftkit.strategies.base import LRMultiplier, trainable
from peftkit.training.integrity import IntegrityCheck, reason_unchanged
from peftkit.training.optimizer import MasterWeightAdamW, lr_lambdas
from support.toy_models import NAMES, load_toy, logits, merged_model, rows, toy, train

LAYER = "bert.encoder.layer"
FIRST = "{kind: frozen, last: 0, first: 1}"
EMBEDDINGS = "{kind: frozen, last: 0, embeddings: true}"
PLUS_PLUS = "{kind: compacter++, n: 8, rank: 2, reduction: 4}"
EMBEDDINGS_NAMED = "{kind: frozen, last: 0, patterns: ['*embed*']}"
CELLS = [
    ("tiny-bert", FIRST, "none"),
    ("tiny-llama", "{kind: frozen, last: 1, embeddings: true}", "none"),
    ("tiny-llama", "gradual", "none"),
    ("tiny-gpt2", "bitfit", "none"),
    ("tiny-qwen2", "bitfit", "none"),
    ("tiny-bart", "bitfit", "none"),
    ("tiny-bert", "{kind: bitfit, targets: [query, intermediate.dense]}", "none"),
    ("tiny-bert", "bitfit", "8bit"),
    ("tiny-bert", "bitfit", "4bit"),
    ("tiny-qwen3", "layernorm", "none"),
    ("tiny-t5", "layernorm", "none"),
    ("tiny-bert", "{kind: layernorm, targets: [output.LayerNorm], biases: false}", "none"),
    ("tiny-llama", "layernorm", "8bit"),
    ("tiny-llama", "layernorm", "4bit"),
    ("tiny-bert", "{kind: adapter, drop: 1, activation: mish}", "none"),
    ("tiny-llama", "{kind: adapter, variant: parallel, drop: 1}", "4bit"),
    ("tiny-albert", "{kind: adapter, variant: houlsby}", "none"),
    ("tiny-albert", "{kind: adapter, variant: parallel}", "none"),
    ("tiny-t5", "{kind: adapter, variant: houlsby}", "none"),
    ("tiny-t5", "{kind: adapter, drop: 2}", "none"),
    ("tiny-bart", "{kind: adapter, variant: parallel}", "none"),
    ("tiny-bert", PLUS_PLUS, "none"),
    ("tiny-bert", "compacter", "4bit"),
    ("tiny-llama", "compacter", "8bit"),
    ("tiny-albert", "compacter", "none"),
    ("tiny-t5", "compacter", "none"),
    ("tiny-bert", "[adapter, bitfit]", "none"),
    ("tiny-bert", "[bitfit, adapter]", "4bit"),
    ("tiny-bert", "[lora, bitfit]", "none"),
    ("tiny-bert", "[lora, bitfit]", "8bit"),
    ("tiny-bert", "[bitfit, layernorm]", "none"),
    ("tiny-bert", f"[lora, {EMBEDDINGS_NAMED}]", "none"),
    ("tiny-llama", f"[{EMBEDDINGS}, lora]", "none"),
    ("tiny-llama", "[lora, layernorm, adapter]", "none"),
]


def a_recipe(model: str, strategy: str, quantize: str = "none", *others: str) -> Recipe:
    return toy(model, f"strategy={strategy}", f"quantize={quantize}", *others)


def refusal(model: str, strategy: str) -> str:
    recipe = a_recipe(model, strategy)
    with pytest.raises(RecipeError) as caught:
        meta_model(recipe, find_model(model).location, NAMES)
    return str(caught.value)


def names_of(model: str, strategy: str, quantize: str = "none") -> set[str]:
    """What trains."""
    return set(trainable(load_toy(a_recipe(model, strategy, quantize)).module))


@pytest.mark.parametrize(("model", "strategy", "quantize"), CELLS)
def test_each_keeps_what_every_strategy_promises(
    model: str, strategy: str, quantize: str, tmp_path: Path
) -> None:
    recipe = a_recipe(model, strategy, quantize)
    examples = rows(model)["test"]
    made = load_toy(recipe)
    started = logits(made, examples)
    probe = load_toy(recipe.but(strategy={"kind": "frozen", "last": 0}))
    assert torch.equal(started, logits(probe, examples))

    witness = IntegrityCheck(made.module)
    seen = train(recipe, made)
    assert [n for n, g in seen.gradients.items() if g == 0 and reason_unchanged(n) is None] == []
    proof = witness.verify(seen.master_weights, 0, SimpleNamespace(global_step=5))
    assert (proof.status, proof.unmoved, proof.changed) == ("proven", [], [])

    recipe.strategy.save(made.module, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    again = load_toy(recipe, artifact=tmp_path)
    assert torch.equal(logits(again, examples), logits(made, examples))
    assert not torch.equal(logits(again, examples), started)
    assert meta_model(recipe, find_model(model).location, NAMES)[1] == made.parameters


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("tiny-bert", "bitfit"),
        ("tiny-bert", "[lora, bitfit]"),
        ("tiny-bert", "[bitfit, layernorm]"),
        ("tiny-llama", "layernorm"),
        ("tiny-bert", f"[lora, {EMBEDDINGS_NAMED}]"),
        ("tiny-llama", f"[{EMBEDDINGS}, lora]"),
        ("tiny-bert", "gradual"),
    ],
)
def test_where_every_part_is_mergeable_the_result_is_an_ordinary_checkpoint(
    model: str, strategy: str, tmp_path: Path
) -> None:
    recipe = a_recipe(model, strategy, "none", "training.packing=off")
    made = load_toy(recipe)
    train(recipe, made)
    expected = logits(made, rows(model)["test"])
    plain = merged_model(recipe, made, tmp_path)
    torch.testing.assert_close(padded_logits(plain, model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "strategy",
    ["compacter", "{kind: adapter, variant: parallel, drop: 1}", "bitfit", "[lora, bitfit]"],
)
@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_gradient_checkpointing_changes_nothing(strategy: str, quantize: str) -> None:
    recipe = a_recipe("tiny-bert", strategy, quantize)
    losses = train(recipe, load_toy(recipe), steps=3).losses
    checked = recipe.but(training__gradient_checkpointing=True)
    seen = train(checked, load_toy(checked), steps=3)
    assert seen.losses == pytest.approx(losses, abs=1e-6)
    assert min(seen.gradients.values()) >= 0 and len(seen.gradients) > 2


# --- lr_multipliers ---


def test_the_rate_falls_from_the_head_to_the_embeddings() -> None:
    made = load_toy(a_recipe("tiny-bert", "{kind: full, layer_decay: 0.5}")).module
    lr_multipliers = a_recipe(
        "tiny-bert", "{kind: full, layer_decay: 0.5}"
    ).strategy.lr_multipliers(made)
    assert (
        "classifier.weight" not in lr_multipliers
        and "bert.pooler.dense.weight" not in lr_multipliers
    )
    assert lr_multipliers[f"{LAYER}.1.output.dense.weight"] == LRMultiplier(0.5)
    assert lr_multipliers[f"{LAYER}.0.output.dense.weight"] == LRMultiplier(0.25)
    assert lr_multipliers["bert.embeddings.word_embeddings.weight"] == LRMultiplier(0.125)
    assert lr_multipliers["bert.embeddings.LayerNorm.bias"] == LRMultiplier(0.125)
    assert a_recipe("tiny-bert", "full").strategy.lr_multipliers(made) == {}


def test_an_encoder_is_further_from_the_head_than_its_decoder() -> None:
    strategy = a_recipe("tiny-bart", "{kind: full, layer_decay: 0.5}").strategy
    lr_multipliers = strategy.lr_multipliers(load_toy(a_recipe("tiny-bart", "full")).module)
    factors = [lr_multipliers[f"model.{part}.fc1.weight"].factor for part in (
        "decoder.layers.1", "decoder.layers.0", "encoder.layers.1", "encoder.layers.0"
    )]  # fmt: skip
    assert factors == [0.5, 0.25, 0.125, 0.0625]
    assert lr_multipliers["model.shared.weight"].factor == 0.5**5


def test_frozen_slows_only_what_it_trains_itself() -> None:
    slow = "{kind: frozen, last: 1, layer_decay: 0.5}"
    alone = a_recipe("tiny-bert", slow)
    lr_multipliers = alone.strategy.lr_multipliers(load_toy(alone).module)
    assert lr_multipliers and set(lr_multipliers.values()) == {LRMultiplier(0.5)}
    assert all(name.startswith(f"{LAYER}.1.") for name in lr_multipliers)
    both = a_recipe("tiny-bert", f"[lora, {slow}]")
    beside = both.strategy.lr_multipliers(load_toy(both).module)
    assert len(beside) == len(lr_multipliers) and not [name for name in beside if "lora_" in name]


def moving(recipe: Recipe, steps: int) -> dict[str, int]:
    """At which step each tensor first moves, with the optimizer and schedule of a real run."""
    made = load_toy(recipe)
    optimizer = MasterWeightAdamW(
        trainable(made.module).items(),
        1e-3,
        0.01,
        1.0,
        recipe.strategy.lr_multipliers(made.module),
    )
    schedule = LambdaLR(optimizer, lr_lambdas(optimizer, "linear", 0, steps))
    examples = rows(recipe.model)["train"]
    batch = made.batcher([examples[i] for i in range(8)])
    labels = batch.pop("labels")
    moved: dict[str, int] = {}
    for step in range(steps):
        before = {n: p.detach().clone() for n, p in trainable(made.module).items()}
        recipe.task.loss(made.module(**batch).logits, labels, 0.0).backward()
        optimizer.step()
        schedule.step()
        for name, parameter in trainable(made.module).items():
            if not torch.equal(parameter, before[name]):
                moved.setdefault(name, step)
    return moved


def test_gradual_unfreezing_moves_a_block_more_at_a_time() -> None:
    recipe = a_recipe("tiny-bert", "{kind: gradual, until: 0.5, layer_decay: 0.5}")
    moved = moving(recipe, 12)
    assert moved["classifier.weight"] == 0
    assert moved[f"{LAYER}.1.output.dense.weight"] == 2
    assert moved[f"{LAYER}.0.output.dense.weight"] == 4
    assert moved["bert.embeddings.word_embeddings.weight"] == 6
    still = set(trainable(load_toy(recipe).module)) - set(moved)
    assert all(reason_unchanged(name) for name in still)


@pytest.mark.parametrize("until", [0.5, 0.9])
def test_a_gradual_run_of_few_steps_proves_that_everything_moved(
    until: float, tmp_path: Path
) -> None:
    settings = {"steps": 8, "proof": "run", "threads": 1, "evaluate": "never", "batch_size": 8}
    recipe = a_recipe("tiny-bert", f"{{kind: gradual, until: {until}}}").but(training=settings)
    record = peftkit.train(recipe, tmp_path)
    assert record.proof is not None
    assert (record.proof.status, record.proof.unmoved) == ("proven", [])
    assert record.parameters.trainable == record.parameters.total


# --- what trains -------------------------------------------------------------------------------


def test_frozen_counts_blocks_from_either_end() -> None:
    first = names_of("tiny-bert", FIRST)
    assert f"{LAYER}.0.output.dense.weight" in first
    assert all(n.startswith((f"{LAYER}.0.", "classifier.")) for n in first)
    embeddings = names_of("tiny-bert", EMBEDDINGS)
    assert {"bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"} < embeddings
    assert all(n.startswith(("bert.embeddings.", "classifier.")) for n in embeddings)
    last = names_of("tiny-bert", "{kind: frozen, last: 1}")
    assert "bert.pooler.dense.weight" in last
    assert last & first == {"classifier.weight", "classifier.bias"}


def test_bitfit_trains_every_bias_and_the_head() -> None:
    module = load_toy(a_recipe("tiny-bert", "full")).module
    biases = {n for n, _ in module.named_parameters() if n.endswith(".bias")}
    assert names_of("tiny-bert", "bitfit") == biases | {"classifier.weight"}
    few = names_of("tiny-bert", "{kind: bitfit, targets: [query, intermediate.dense]}")
    assert len(few) == 2 * 2 + 2
    assert names_of("tiny-bert", "bitfit", "4bit") == biases | {"classifier.weight"}


@pytest.mark.parametrize(("model", "per_block"), [("tiny-llama", 2), ("tiny-qwen3", 4)])
def test_layernorm_trains_rms_norms_too(model: str, per_block: int) -> None:
    trained = names_of(model, "layernorm")
    assert len(trained) == 2 * per_block + 2 and "model.norm.weight" in trained


def test_layernorm_leaves_biases_alone_where_it_is_told_to() -> None:
    trained = names_of("tiny-bert", "{kind: layernorm, biases: false}")
    assert len(trained) == 1 + 2 * 2 + 2 and "classifier.bias" in trained
    assert [n for n in trained if n.endswith("bias")] == ["classifier.bias"]


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("into_inputs", [False, True])
def test_a_bias_beside_quantized_weights_gets_its_exact_gradient(
    quantize: str, into_inputs: bool
) -> None:
    made = load_toy(a_recipe("tiny-bert", "bitfit", quantize)).module
    layer: Any = made.get_submodule(f"{LAYER}.0.intermediate.dense")
    torch.manual_seed(0)
    states, upstream = torch.randn(3, 5, 64, requires_grad=into_inputs), torch.randn(3, 5, 128)
    layer(states).backward(upstream)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)), atol=1e-5, rtol=1e-5)
    if into_inputs:
        exact = upstream @ dequantized(layer)
        torch.testing.assert_close(states.grad, exact, atol=1e-4, rtol=1e-4)


def test_dropped_blocks_have_no_adapter_and_no_backward_pass() -> None:
    module = load_toy(a_recipe("tiny-bert", "{kind: adapter, drop: 1}")).module
    assert not [n for n in trainable(module) if n.startswith(f"{LAYER}.0.")]
    assert len([n for n in trainable(module) if n.startswith(f"{LAYER}.1.adapter")]) == 4
    assert blocks_with_gradient(module) == 1
    assert Recipe.load("lora_tiny", "strategy=adapter_drop").strategy.model_dump()["drop"] == 3


@pytest.mark.parametrize("strategy", ["{kind: adapter, variant: houlsby}", "compacter"])
def test_a_shared_block_has_one_adapter_that_every_pass_uses(strategy: str) -> None:
    made = load_toy(a_recipe("tiny-albert", strategy))
    bottlenecks = [m for n, m in made.module.named_modules() if n.endswith("adapter_feed_forward")]
    assert len(bottlenecks) == 1
    calls: list[int] = []
    bottlenecks[0].register_forward_hook(lambda *_: calls.append(1))
    logits(made, rows("tiny-albert")["test"])
    assert len(calls) == made.module.config.num_hidden_layers == 2


def test_an_adapter_knows_a_decoders_blocks_from_an_encoders() -> None:
    module = load_toy(a_recipe("tiny-t5", "{kind: adapter, variant: houlsby}")).module
    assert len([n for n, _ in module.named_modules() if n.endswith("adapter_feed_forward")]) == 4
    dropped = trainable(load_toy(a_recipe("tiny-t5", "{kind: adapter, drop: 2}")).module)
    assert not [n for n in dropped if ".encoder." in n]
    assert len([n for n in dropped if ".decoder." in n]) == 2 * 4


# --- compacter ---------------------------------------------------------------------------------


def test_a_kronecker_layer_is_the_sum_of_its_products() -> None:
    torch.manual_seed(0)
    rule = Rule(3)
    layer = KroneckerLinear(rule, 6, 9, rank=2, zero=False)
    nn.init.normal_(layer.bias)
    expected = torch.zeros(6, 9)
    for a, s, t in zip(rule.matrices, layer.s, layer.t, strict=True):
        expected += torch.kron(a, s @ t)
    torch.testing.assert_close(layer.matrix(), expected)
    states = torch.randn(4, 6)
    torch.testing.assert_close(layer(states), states @ expected + layer.bias)
    assert not KroneckerLinear(rule, 6, 9, rank=2, zero=True).matrix().any()


def test_fresh_kronecker_matrices_spread_like_a_plain_adapters() -> None:
    torch.manual_seed(0)
    for n, rank in ((4, 1), (8, 4)):
        layers = [KroneckerLinear(Rule(n), 64, 32, rank, zero=False) for _ in range(64)]
        spread = torch.stack([layer.matrix() for layer in layers]).detach().std()
        assert float(spread) == pytest.approx(0.02, rel=0.15)


def test_all_of_a_compacters_layers_share_one_rule_that_counts_once() -> None:
    made = load_toy(a_recipe("tiny-bert", "compacter"))
    layers = [m for m in made.module.modules() if isinstance(m, KroneckerLinear)]
    assert len(layers) == 2 * 2 * 2 and len({id(layer.rule[0]) for layer in layers}) == 1
    down, up = 4 * 16 + 4 * 1 + 4, 4 * 1 + 4 * 16 + 64  # n=4, rank 1, 64 features to 4
    assert made.parameters.adapter == 4**3 + 4 * (down + up)
    assert [n for n in trainable(made.module) if "rule" in n] == ["bert.compacter_rule.matrices"]
    thin = load_toy(a_recipe("tiny-bert", "{kind: compacter, variant: pfeiffer}"))
    assert thin.parameters.adapter == 4**3 + 2 * (down + up)


def test_a_trained_compacter_is_a_bottleneck_with_its_matrices() -> None:
    recipe = a_recipe("tiny-bert", PLUS_PLUS)
    made = load_toy(recipe)
    train(recipe, made)
    down, activation, up = made.module.get_submodule(f"{LAYER}.1.adapter_feed_forward")  # type: ignore[misc]
    states = torch.randn(3, 64)
    plain = activation(states @ down.matrix() + down.bias) @ up.matrix() + up.bias
    whole = made.module.get_submodule(f"{LAYER}.1.adapter_feed_forward")(states)
    torch.testing.assert_close(whole, plain)
    assert bool(up.matrix().any())


# --- combinations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("tiny-bert", ["adapter", "bitfit"]),
        ("tiny-bert", ["bitfit", "layernorm"]),
        ("tiny-llama", ["layernorm", "compacter"]),
        ("tiny-bert", [EMBEDDINGS_NAMED, "{kind: adapter, drop: 1}"]),
    ],
)
def test_a_combination_trains_what_its_parts_train(model: str, parts: list[str]) -> None:
    alone = set().union(*(names_of(model, part) for part in parts))
    assert names_of(model, f"[{', '.join(parts)}]") == alone


@pytest.mark.parametrize("part", ["bitfit", EMBEDDINGS_NAMED])
def test_beside_lora_a_part_trains_what_it_trains_alone(part: str) -> None:
    both = load_toy(a_recipe("tiny-bert", f"[lora, {part}]")).module
    lora = load_toy(a_recipe("tiny-bert", "lora")).module
    beside = set(trainable(both)) - set(trainable(lora))
    plain = {n.removeprefix("base_model.model.").replace(".base_layer", "") for n in beside}
    head = {"classifier.weight", "classifier.bias"}
    assert set(trainable(lora)) < set(trainable(both))
    assert plain == names_of("tiny-bert", part) - head


def test_a_pattern_does_not_reach_what_peft_has_put_beside() -> None:
    module = load_toy(a_recipe("tiny-bert", "lora")).module
    plain = load_toy(a_recipe("tiny-bert", "full")).module
    own = base_parameters(module.get_base_model())
    assert list(own) == [name for name, _ in plain.named_parameters()]
    assert not [p for p in own.values() if p.requires_grad]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("{kind: frozen, last: 3}", "strategy.last: the model has 2 blocks (got 3) - use at most"),
        (
            "{kind: frozen, last: 0, first: 3}",
            "strategy.first: the model has 2 blocks (got 3) - use at most that many",
        ),
        (
            "{kind: frozen, last: 1, first: 2}",
            "strategy.first: with strategy.last=1 it names a block twice, for the model has 2 "
            "(got 2) - use at most 1, or strategy=full",
        ),
        (
            "{kind: frozen, last: 1, first: 1, embeddings: true}",
            "strategy: every weight is trained and none is frozen - use strategy=full",
        ),
        ("{kind: frozen, patterns: ['*']}", "every weight is trained and none is frozen"),
        ("{kind: frozen, patterns: [nothing]}", "'nothing' matches no parameter"),
        (
            "{kind: adapter, drop: 2}",
            "strategy.drop: the model has 2 blocks (got 2) - use at most 1",
        ),
        ("adapter_drop", "strategy.drop: the model has 2 blocks (got 3) - use at most 1"),
        ("{kind: compacter, n: 5}", "strategy.n: 5 does not divide the hidden size 64 - "),
        ("{kind: bitfit, targets: [qeury]}", "no layer of this model is named 'qeury' - choose"),
        ("{kind: layernorm, targets: [dense]}", "no layer of this model is named 'dense'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(strategy: str, said: str) -> None:
    assert said in refusal("tiny-bert", strategy)


def test_the_nearest_n_that_divides_is_named() -> None:
    assert refusal("tiny-bert", "{kind: compacter, n: 5}").endswith(nearest_divisors(64, 5))
    assert nearest_divisors(64, 5) == "4 and 8"


@pytest.mark.parametrize("kind", ["full", "frozen", "gradual"])
@pytest.mark.parametrize("decay", [0, -0.5, 1.5])
def test_a_layer_decay_out_of_range_is_refused(kind: str, decay: float) -> None:
    with pytest.raises(RecipeError, match=rf"strategy.layer_decay .*\(got {decay}\)"):
        a_recipe("tiny-bert", f"{{kind: {kind}, layer_decay: {decay}}}")


@pytest.mark.parametrize("until", [0, 0.95])
def test_everything_moves_for_a_tenth_of_the_steps_at_least(until: float) -> None:
    with pytest.raises(RecipeError, match=rf"strategy.until .*\(got {until}\)"):
        a_recipe("tiny-bert", f"{{kind: gradual, until: {until}}}")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize(
    "strategy", ["gradual", FIRST, EMBEDDINGS, "{kind: full, layer_decay: 0.9}"]
)
def test_what_trains_the_base_is_refused_on_a_quantized_one(strategy: str, quantize: str) -> None:
    with pytest.raises(RecipeError, match=f"'quantize: {quantize}' freezes them - use strategy"):
        a_recipe("tiny-bert", strategy, quantize)


@pytest.mark.parametrize("strategy", ["bitfit", "[adapter, bitfit]", "[lora, bitfit]"])
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_a_model_without_biases_is_refused_with_what_is_possible(
    architecture: str, strategy: str
) -> None:
    said = refusal(f"tiny-{architecture}", strategy)
    assert f"strategy: a model of the architecture {architecture!r} has no biases - use " in said
    assert "strategy=layernorm, strategy=lora or strategy=adapter" in said


def test_what_misfits_is_refused_before_data_and_weights_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\n" + "a goal,sport\n" * 40)
    files = {"kind": "files", "path": str(tmp_path / "one.csv"), "text": "text", "label": "label"}
    faulty = a_recipe("tiny-llama", "bitfit").but(data={**files, "max_length": 64})
    with pytest.raises(RecipeError, match="'llama' has no biases"):
        peftkit.train(faulty, tmp_path / "runs")
    with pytest.raises(peftkit.DataError, match="rows have the label 'sport'"):
        peftkit.train(faulty.but(strategy="layernorm"), tmp_path / "runs")


def test_depths_and_blocks_are_found_in_what_peft_wraps() -> None:
    made: LoadedModel = load_toy(a_recipe("tiny-bert", "[lora, bitfit]"))
    depths = parameter_depths(made.module)
    assert depths["base_model.model.bert.embeddings.LayerNorm.bias"] == 3
    assert len(blocks_of(made.module)) == 2
