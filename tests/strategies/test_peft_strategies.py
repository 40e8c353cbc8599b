"""PEFT's other methods: AdaLoRA's budget, what each scales or rotates, and any method by name."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.evaluation.prediction import initialization_batches
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, meta_model
from peftkit.models.architectures import linear_layers, model_type_of
from peftkit.strategies.any_peft import AnyPeft, all_settings_of, methods
from peftkit.strategies.base import trainable
from peftkit.strategies.ia3 import paper_layers
from peftkit.training.integrity import IntegrityCheck, frozen
from peftkit.training.optimizer import MasterWeightAdamW, is_excluded_from_decay
from support.run_processes import Zygote, killed_at, only_run, result
from support.toy_models import NAMES, batches, load_toy, logits, merged_model, rows, toy, train

ADALORA = "{kind: adalora, target_r: 2, init_r: 4, interval: 2}"
STEPS = 12


def made(model: str, strategy: str, *more: str) -> tuple[Recipe, LoadedModel]:
    recipe = toy(model, f"strategy={strategy}", *more)
    return recipe, load_toy(recipe)


class Training:
    """AdaLoRA's steps with its budget, one after another."""

    def __init__(self, *more: str) -> None:
        self.recipe, self.made = made("tiny-bert", ADALORA, *more)
        self.optimizer = MasterWeightAdamW(trainable(self.made.module).items(), 1e-2, 0.0, 1.0)
        self.budget: Any = self.recipe.strategy.training_hook(self.made.module, STEPS)
        self.optimizer.training_hook = self.budget
        self.given = list(batches(self.made, rows("tiny-bert")["train"], STEPS))

    def go_on(self, first: int, last: int) -> None:
        for batch in self.given[first:last]:
            labels = batch["labels"]
            said = self.made.module(**{k: v for k, v in batch.items() if k != "labels"}).logits
            (self.recipe.task.loss(said, labels, 0.0) + self.budget.penalty()).backward()
            self.optimizer.step()

    def values(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in trainable(self.made.module).items() if ".lora_E." in n}

    def left(self) -> int:
        return sum(int((value != 0).sum()) for value in self.values().values())


def test_adalora_prunes_to_its_budget_and_saves_at_the_initial_rank(tmp_path: Path) -> None:
    training = Training()
    layers = len(training.values())
    training.go_on(0, 1)
    assert training.left() == 4 * layers
    training.go_on(1, 4)
    assert 2 * layers < training.left() < 4 * layers
    training.go_on(4, STEPS)
    assert training.left() == 2 * layers
    training.recipe.strategy.save(training.made.module, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {len(t) for n, t in saved.items() if "lora_E" in n or "lora_A" in n} == {4}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] is None
    training.made.module.eval()
    again = load_toy(training.recipe, "fp32", tmp_path)
    examples = rows("tiny-bert")["test"]
    assert torch.equal(logits(again, examples), logits(training.made, examples))


def test_adaloras_penalty_is_pefts() -> None:
    recipe, this = made("tiny-bert", "{kind: adalora, orthogonality: 0.3}", "training.packing=off")
    examples = rows("tiny-bert")["test"]
    batch = this.batcher([examples[index] for index in range(4)])
    this.module.eval()
    output = this.module(**batch)
    pefts = output.loss - cross_entropy(output.logits, batch["labels"])
    ours = recipe.strategy.training_hook(this.module, 10).penalty()
    assert ours.item() == pytest.approx(pefts.item(), rel=1e-4) and ours.item() > 0.3


def after_a_break(training: Training, tmp_path: Path, forget: bool) -> Training:
    """A training that goes on at step 7 from what `training` has saved then."""
    torch.save(training.optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = Training()
    for name, parameter in trainable(other.made.module).items():
        parameter.data.copy_(trainable(training.made.module)[name])
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    if forget:
        state["training_hook"].update(exp_avg_ipt={}, exp_avg_unc={}, ipt={}, step=0)
    other.optimizer.load_state_dict(state)
    return other


@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_resumed_adalora_goes_on_bit_for_bit(step: int, tmp_path: Path) -> None:
    training = Training()
    training.go_on(0, step)
    other = after_a_break(training, tmp_path, forget=False)
    for each in (training, other):
        each.go_on(step, STEPS)
    theirs = trainable(other.made.module)
    assert all(torch.equal(p, theirs[n]) for n, p in trainable(training.made.module).items())


def test_a_budget_that_is_not_restored_would_be_seen(tmp_path: Path) -> None:
    training = Training()
    training.go_on(0, 3)
    other = after_a_break(training, tmp_path, forget=True)
    for each in (training, other):
        each.go_on(3, STEPS)
    theirs = other.values()
    assert not all(torch.equal(value, theirs[name]) for name, value in training.values().items())


def test_a_layer_that_is_pruned_away_is_no_failed_proof() -> None:
    training = Training()
    witness = IntegrityCheck(training.made.module)
    training.go_on(0, STEPS)
    value = next(iter(training.values().values()))
    value.zero_()
    state = type("State", (), {"global_step": STEPS})
    proof = witness.verify(training.optimizer.master_weights, 0, state)
    assert (proof.status, proof.unmoved) == ("proven", [])
    assert "prune all directions" in next(iter(proof.excused.values()))


@pytest.mark.parametrize("held", ["none", "8bit", "4bit"])
def test_adalora_autocast_adapter_dtype_on_a_base_in_bf16(held: str) -> None:
    recipe = toy("tiny-bert", f"strategy={ADALORA}", f"quantize={held}")
    this = load_toy(recipe, "bf16")
    assert {p.dtype for p in trainable(this.module).values()} == {torch.float32}
    assert not [name for name in trainable(this.module) if "ranknum" in name]
    assert logits(this, rows("tiny-bert")["test"]).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "target_r: 12",
            "target_r=12 is not below init_r=12: there is nothing to prune - use a larger",
        ),
        ("tinit: 0.6, tfinal: 0.4", "leave no steps to prune in - use shares that add up"),
    ],
)
def test_adalora_refuses_a_budget_without_a_pruning(settings: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        toy("tiny-bert", f"strategy={{kind: adalora, {settings}}}")


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_adaloras_schedule_fits_any_number_of_steps(steps: int) -> None:
    recipe, this = made("tiny-bert", "{kind: adalora, tinit: 0.5, tfinal: 0.49}")
    config: Any = this.module.peft_config["default"]
    recipe.strategy.training_hook(this.module, steps)
    assert config.total_step == steps
    assert 0 <= config.tinit < max(1, steps - config.tfinal)


@pytest.mark.parametrize("kind", ["adalora", "loha", "lokr"])
def test_a_rank_larger_than_a_layer_can_have_is_refused(kind: str) -> None:
    name = "init_r" if kind == "adalora" else "r"
    with pytest.raises(RecipeError, match=rf"k_proj is 32 x 64: .* at most strategy.{name}=32"):
        made("tiny-llama", f"{{kind: {kind}, {name}: 33}}")


def test_vera_makes_its_projections_again_from_the_key(tmp_path: Path) -> None:
    recipe, this = made("tiny-bert", "{kind: vera, r: 16, key: 3}")
    train(recipe, this)
    recipe.strategy.save(this.module, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not [name for name in saved if "vera_A" in name or "vera_B" in name]
    held = {n: t for n, t in frozen(this.module).items() if "vera_A" in n}
    again = load_toy(recipe, "fp32", tmp_path)
    now = frozen(again.module)
    assert held and all(torch.equal(t, now[n]) for n, t in held.items())
    _, other = made("tiny-bert", "{kind: vera, r: 16, key: 4}")
    others = frozen(other.module)
    assert not any(torch.equal(t, others[n]) for n, t in held.items())


@pytest.mark.parametrize(("kind", "size"), [("oft", 24), ("boft", 12)])
def test_blocks_that_do_not_divide_a_layer_are_refused(kind: str, size: int) -> None:
    fits = {"oft": 16, "boft": 8}[kind]
    with pytest.raises(RecipeError, match=rf"has 64 inputs.* use strategy.block_size={fits}$"):
        made("tiny-bert", f"{{kind: {kind}, block_size: {size}}}")
    assert made("tiny-bert", f"{{kind: {kind}, block_size: {fits}}}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the extension may be compiled")
def test_several_of_bofts_factors_are_refused_where_peft_would_take_one() -> None:
    with pytest.raises(RecipeError, match=r"cannot be compiled here.*use strategy.factors=1"):
        made("tiny-bert", "{kind: boft, factors: 2}")


@pytest.mark.parametrize("kind", ["oft", "boft", "loha", "lokr"])
@pytest.mark.parametrize("held", ["none", "8bit"])
def test_what_peft_does_not_know_of_conv1d_is_refused(kind: str, held: str) -> None:
    recipe = toy("tiny-gpt2", f"strategy={kind}", f"quantize={held}")
    with pytest.raises(RecipeError, match="does not support Conv1D layers"):
        meta_model(recipe, find_model("tiny-gpt2").location, NAMES)
    with pytest.raises(RecipeError, match="does not support Conv1D layers"):
        load_toy(recipe)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_what_takes_its_shape_from_weights_is_refused_on_packed_ones(kind: str) -> None:
    with pytest.raises(RecipeError, match="packs them - use strategy=lora, quantize=8bit or"):
        toy("tiny-bert", f"strategy={kind}", "quantize=4bit")


IA3_LAYERS = {
    "tiny-bert": ({"attention.self.key", "attention.self.value", "output.dense"}, "output.dense"),
    "tiny-distilbert": ({"attention.k_lin", "attention.v_lin", "ffn.lin2"}, "ffn.lin2"),
    "tiny-llama": ({"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}, "mlp.down_proj"),
    "tiny-gpt2": ({"attn.c_attn", "mlp.c_proj"}, "mlp.c_proj"),
}


@pytest.mark.parametrize("model", IA3_LAYERS)
def test_ia3_rescales_keys_values_and_what_enters_the_feed_forwards_end(model: str) -> None:
    _, this = made(model, "ia3")
    found = {n: m for n, m in this.module.named_modules() if hasattr(m, "is_feedforward")}
    tails, end = IA3_LAYERS[model]
    assert len(found) == 2 * len(tails)
    assert all(any(name.endswith(f".{tail}") for tail in tails) for name in found)
    assert not [name for name in found if name.endswith("attention.output.dense")]
    assert all(m.is_feedforward == name.endswith(end) for name, m in found.items())


def test_ia3_falls_back_on_pefts_table_and_says_when_that_has_nothing() -> None:
    model = made("tiny-llama", "linear_probe")[1].module
    model.config.model_type = "gemma2"
    layers, feed_forward = paper_layers(model)
    assert model_type_of(model) == "gemma2" and len(layers) == 6 and len(feed_forward) == 2
    model.config.model_type = "nobodys"
    with pytest.raises(RecipeError, match=r"'nobodys', only bert.*use strategy=lora"):
        paper_layers(model)


@pytest.mark.parametrize("kind", ["ia3", "boft", "vera"])
def test_no_decay_pulls_scales_to_zero(kind: str) -> None:
    _, this = made("tiny-bert", kind)
    scales = {
        name: p
        for name, p in trainable(this.module).items()
        if any(part in name for part in ("ia3_l", "boft_s", "vera_lambda"))
    }
    assert scales and all(is_excluded_from_decay(name, p) for name, p in scales.items())
    assert not is_excluded_from_decay("lora_A.weight", torch.nn.Parameter(torch.ones(2, 8)))


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "boft", "vera", "ia3"])
@pytest.mark.parametrize("model", ["tiny-roberta"])
def test_a_head_of_several_layers_is_merged_too(kind: str, model: str, tmp_path: Path) -> None:
    recipe, this = made(model, f"{{kind: {kind}}}", "training.packing=off")
    train(recipe, this, steps=2)
    examples = rows(model)["test"]
    batch = this.batcher([examples[index] for index in range(4)])
    batch.pop("labels")
    merged = merged_model(recipe, this, tmp_path)
    with torch.no_grad():
        expected = this.module(**batch).logits
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=0)


def test_pefts_methods_and_their_settings_are_read_without_importing_it() -> None:
    code = (
        "import sys\n"
        "from peftkit.strategies.any_peft import AnyPeft, methods\n"
        "assert 'fourierft' in methods()\n"
        "AnyPeft(method='fourierft', config={'n_frequency': 3})\n"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_they_are_those_that_peft_registers() -> None:
    registered = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(methods()) == registered
    for method, name in methods().items():
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.upper()]]
        assert config.__name__ == name
        fields = {field.name for field in dataclasses.fields(config)}
        assert set(all_settings_of(method)) == fields, method


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{kind: peft, method: fourierfft}", "no method 'fourierfft' - did you mean 'fourierft'"),
        (
            "{kind: peft, method: fourierft, config: {n_frequncy: 2, targt_modules: [x]}}",
            "fourierft has no setting 'n_frequncy' - did you mean 'n_frequency'.*; .*has no "
            "setting 'targt_modules' - did you mean 'target_modules'",
        ),
        ("{kind: peft, method: oft, config: {task_type: x}}", "'task_type' is set by peftkit"),
        ("{kind: peft, method: adalora}", "prunes nothing by itself - use strategy=adalora"),
        ("peft", "strategy.method: is required"),
    ],
)
def test_methods_and_settings_that_peft_has_not_are_refused(settings: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        toy("tiny-bert", f"strategy={settings}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("method: c3a", "PEFT's c3a cannot train this model .*block size should be a factor"),
        ("method: poly", "PEFT's poly cannot train this model .*task_ids should not be None"),
        ("method: hra, config: {r: 0}", "PEFT's hra cannot train this model .*positive integer"),
        ("method: oft, config: {r: 2, oft_block_size: 2}", "only specify either r"),
    ],
)
def test_what_peft_cannot_do_is_refused_in_its_words(settings: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"strategy.method: .*{said}"):
        recipe, this = made("tiny-bert", f"{{kind: peft, {settings}}}")
        recipe.strategy.prepare(
            this.module, lambda: initialization_batches(recipe, this, rows("tiny-bert"))
        )


@pytest.mark.parametrize(
    "settings",
    [
        "method: hra",
        "method: road",
        "method: shira",
        "method: unilora",
        "method: trainable_tokens, config: {token_indices: [1, 2, 3]}",
        "method: ia3",
        "method: lora, config: {r: 3, target_modules: [query]}",
    ],
)
def test_any_method_is_planned_trained_saved_and_loaded(settings: str, tmp_path: Path) -> None:
    recipe, this = made("tiny-bert", f"{{kind: peft, {settings}}}")
    planned = meta_model(recipe, find_model("tiny-bert").location, NAMES)
    assert planned[1] == this.parameters
    assert all(parameter.is_meta for parameter in planned[0].parameters())
    held = {name: t.clone() for name, t in frozen(this.module).items()}
    seen = train(recipe, this)
    moved = trainable(this.module)
    assert not [n for n, was in seen.before.items() if torch.equal(moved[n], was)]
    assert all(torch.equal(t, held[n]) for n, t in frozen(this.module).items())
    recipe.strategy.save(this.module, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    again = load_toy(recipe, "fp32", tmp_path)
    examples = rows("tiny-bert")["test"]
    assert torch.equal(logits(again, examples), logits(this, examples))


def test_a_head_that_peft_does_not_save_is_saved_beside(tmp_path: Path) -> None:
    recipe, this = made(
        "tiny-bert", "{kind: peft, method: trainable_tokens, config: {token_indices: [1]}}"
    )
    recipe.strategy.save(this.module, tmp_path)
    assert len(load_file(tmp_path / "head.safetensors")) == 2
    assert recipe.strategy.loads_with == "peftkit"
    recipe, this = made("tiny-bert", "{kind: peft, method: hra}")
    (tmp_path / "hra").mkdir()
    recipe.strategy.save(this.module, tmp_path / "hra")
    assert not (tmp_path / "hra" / "head.safetensors").exists()
    assert recipe.strategy.loads_with == "peft"


def test_all_linear_layers_are_the_targets_where_none_are_given() -> None:
    _, this = made("tiny-bert", "{kind: peft, method: hra}")
    _, plain = made("tiny-bert", "linear_probe")
    found = [n for n, m in this.module.named_modules() if hasattr(m, "hra_u")]
    assert [n.removeprefix("base_model.model.") for n in found] == linear_layers(plain.module)


def test_a_method_is_mergeable_if_a_strategy_defines_its_weight_deltas() -> None:
    methods = {"lora": True, "ln_tuning": True, "trainable_tokens": True, "lily": False}
    for method, mergeable in methods.items():
        assert AnyPeft(method=method).mergeable is mergeable, method


@pytest.mark.parametrize(
    ("method", "instead"),
    [("adalora", "adalora"), ("prompt_tuning", "prompt"), ("prefix_tuning", "prefix")],
)
def test_what_peft_alone_has_wrong_is_refused_for_ours(method: str, instead: str) -> None:
    with pytest.raises(RecipeError, match=rf"PEFT's {method} .* - use strategy={instead}$"):
        toy("tiny-bert", f"strategy={{kind: peft, method: {method}}}")


def test_pefts_version_is_the_one_that_was_read() -> None:
    assert peft.__version__.startswith("0.21"), "look again at what PEFT 0.21 is said to do"


@pytest.mark.slow
def test_a_run_of_adaloras_that_was_killed_ends_as_one_that_was_not(
    zygote: Zygote, tmp_path: Path
) -> None:
    settings = (f"strategy={ADALORA}", "training.steps=20", "training.save_steps=6")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert zygote.run(whole, *settings).code == 0
    ended = zygote.run(killed, *settings, before=killed_at(14))
    assert ended.code == -signal.SIGKILL, ended.said
    assert not (only_run(killed) / "record.json").exists()
    ended = zygote.run(killed, *settings)
    assert ended.code == 0 and "resuming at step 12" in ended.said, ended.said
    assert result(killed) == result(whole)
