"""LoRA's variants: where each starts, what its artifact fits, and what is refused."""

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError, RunError
from peftkit.evaluation.prediction import initialization_batches
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, load_config, meta_model
from peftkit.models.linear_layers import stored_weight
from peftkit.models.quantization import dequantized
from peftkit.strategies.base import quiet_peft, trainable
from peftkit.strategies.lora import VARIANTS, Lora, lora_layers, make_up_for_rounding
from peftkit.training.checkpoints import load_trained, save_trained
from peftkit.training.optimizer import MasterWeightAdamW
from support.run_processes import Zygote, killed_at, only_run, result
from support.toy_models import NAMES, call, load_toy, logits, rows, toy, train

MOVING = ["pissa", "olora"]


def made(recipe: Recipe, precision: str = "fp32") -> LoadedModel:
    return load_toy(recipe, precision)


def base_logits(recipe: Recipe, precision: str = "fp32") -> Tensor:
    probe = recipe.but(strategy="linear_probe")
    return logits(load_toy(probe, precision), rows(recipe.model)["test"])


def weights(this: LoadedModel) -> dict[str, Tensor]:
    layers = lora_layers(this.module).items()
    return {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_an_alias(variant: str) -> None:
    held = "4bit" if variant == "loftq" else "none"
    asked = toy("tiny-bert", f"strategy={variant}", f"quantize={held}").strategy
    assert asked == Lora(variant=variant)


def test_an_unknown_variant_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"variant.*'loftq' or 'eva' \(got 'dorra'\)"):
        toy("tiny-bert", "strategy={kind: lora, variant: dorra}")


@pytest.mark.parametrize(
    ("setting", "variant"), [("loraplus_lr_ratio", "lora_plus"), ("batches", "eva")]
)
def test_a_setting_of_another_variant_is_refused(setting: str, variant: str) -> None:
    said = rf"'{setting}' \(got .*\) is a setting of variant={variant}, not of variant=dora - drop"
    with pytest.raises(RecipeError, match=said):
        toy("tiny-bert", f"strategy={{kind: dora, {setting}: 4}}")
    assert toy("tiny-bert", f"strategy={{kind: {variant}, {setting}: 4}}")


def test_settings_of_other_variants_are_not_part_of_a_runs_name() -> None:
    plain = toy("tiny-bert", "strategy=lora").settings()["strategy"]
    assert plain.keys() == {"kind", "r", "alpha", "dropout", "targets", "variant"}
    assert toy("tiny-bert", "strategy=eva").settings()["strategy"].keys() - plain == {"batches"}


@pytest.mark.parametrize("variant", ["lora", *VARIANTS])
@pytest.mark.parametrize("where", ["plan", "run"])
def test_a_rank_larger_than_a_layer_can_have_is_refused(variant: str, where: str) -> None:
    held = "4bit" if variant == "loftq" else "none"
    recipe = toy("tiny-llama", f"strategy={{kind: {variant}, r: 40}}", f"quantize={held}")
    said = (
        r"strategy.r: the weight of model.layers.0.self_attn.k_proj is 32 x 64: a difference of "
        r"rank 40 would be larger than the weight itself - use at most strategy.r=32"
    )
    with pytest.raises(RecipeError, match=said):
        if where == "plan":
            meta_model(recipe, find_model(recipe.model).location, NAMES)
        else:
            made(recipe)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
def test_the_largest_rank_that_is_named_fits(model: str) -> None:
    assert made(toy(model, "strategy={kind: lora, r: 64}"))


def test_targets_that_match_nothing_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"named 'outpt.dense' - did you mean 'output.dense'"):
        made(toy("tiny-bert", "strategy={kind: pissa, targets: [outpt.dense]}"))


@pytest.mark.parametrize("held", ["none", "8bit"])
def test_loftq_wants_four_bits(held: str) -> None:
    with pytest.raises(RecipeError, match="has none - use quantize=4bit or strategy=lora"):
        toy("tiny-bert", "strategy=loftq", f"quantize={held}")


@pytest.mark.parametrize("variant", MOVING)
@pytest.mark.parametrize("held", ["8bit", "4bit"])
def test_what_moves_weights_wants_whole_ones(variant: str, held: str) -> None:
    nearest = "strategy=loftq, strategy=lora" if held == "4bit" else "strategy=lora"
    with pytest.raises(RecipeError, match=f"round what is left .* - use {nearest} or quantize=no"):
        toy("tiny-bert", f"strategy={variant}", f"quantize={held}")


def test_olora_is_refused_on_layers_that_peft_would_take_apart_the_wrong_way() -> None:
    with pytest.raises(
        RecipeError, match=r"OLoRA does not support Conv1D layers.* - use strategy=lora"
    ):
        made(toy("tiny-gpt2", "strategy=olora"))


def test_lora_plus_has_b_learn_faster_than_all_else() -> None:
    recipe = toy("tiny-bert", "strategy={kind: lora_plus, loraplus_lr_ratio: 4}")
    this = made(recipe)
    lr_multipliers = recipe.strategy.lr_multipliers(this.module)
    assert set(lr_multipliers) == {n for n in trainable(this.module) if ".lora_B." in n}
    optimizer = MasterWeightAdamW(trainable(this.module).items(), 0.5, 0.0, None, lr_multipliers)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, master in optimizer.master_weights.items():
        assert found[id(master)] == (2.0 if ".lora_B." in name else 0.5)
    plain = toy("tiny-bert", "strategy=lora")
    assert plain.strategy.lr_multipliers(made(plain).module) == {}


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-gpt2"])
def test_pissa_takes_the_largest_singular_values(model: str) -> None:
    recipe = toy(model, "strategy={kind: pissa, r: 5}")
    whole = dict(made(recipe.but(strategy="linear_probe")).module.named_modules())
    for name, rest in weights(made(recipe)).items():
        before = torch.linalg.svdvals(whole[name.removeprefix("base_model.model.")].weight)
        assert torch.linalg.svdvals(rest)[0] == pytest.approx(before[5].item(), abs=1e-4)


def test_olora_starts_at_the_first_columns_of_an_orthogonal_matrix() -> None:
    for layer in lora_layers(made(toy("tiny-bert", "strategy=olora")).module).values():
        columns = layer.lora_B["default"].weight
        torch.testing.assert_close(columns.T @ columns, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", MOVING)
@pytest.mark.parametrize(("precision", "slack"), [("fp32", 1e-5), ("bf16", 6e-2)])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_what_moves_weights_starts_as_the_base_but_for_rounding(
    model: str, precision: str, slack: float, variant: str
) -> None:
    recipe = toy(model, f"strategy={variant}")
    started = logits(made(recipe, precision), rows(model)["test"])
    torch.testing.assert_close(started, base_logits(recipe, precision), atol=slack, rtol=0)


@pytest.mark.parametrize("variant", MOVING)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-roberta"])
def test_its_artifact_is_an_ordinary_lora_of_twice_the_rank_on_the_base_as_it_was(
    model: str, variant: str, tmp_path: Path
) -> None:
    recipe = toy(model, f"strategy={{kind: {variant}, r: 3}}")
    this = made(recipe)
    train(recipe, this)
    recipe.strategy.save(this.module, tmp_path)
    config: Any = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (6, 32, True)
    location = find_model(model).location
    configured = load_config(recipe, location, NAMES)
    base = AutoModelForSequenceClassification.from_pretrained(location, config=configured)
    with quiet_peft():
        alone = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    batch = made(recipe.but(strategy="linear_probe", training__packing="off")).batcher(
        [rows(model)["test"][index] for index in range(6)]
    )
    batch.pop("labels")
    batch.pop("read_positions", None)
    with torch.no_grad():
        said = alone(**batch).logits
        ours = call(this, rows(model)["test"].select(range(6)))
    torch.testing.assert_close(said, ours, atol=1e-4, rtol=0)
    started = base_logits(recipe)[:6]
    assert (said - started).abs().max() > 1e-2, "it has learned something"


@pytest.mark.parametrize("variant", [*MOVING, "eva", "loftq"])
def test_a_resumed_run_starts_at_the_same_bits(variant: str, tmp_path: Path) -> None:
    held = "4bit" if variant == "loftq" else "none"
    recipe = toy("tiny-bert", f"strategy={variant}", f"quantize={held}")
    examples = rows("tiny-bert")
    one, other = made(recipe), made(recipe)
    train(recipe, one, steps=2)
    save_trained(one.module, tmp_path / "trained.safetensors")
    torch.randn(5)  # chance has gone on
    recipe.strategy.prepare(other.module, lambda: initialization_batches(recipe, other, examples))
    frozen = weights(one)
    assert all(torch.equal(weight, frozen[name]) for name, weight in weights(other).items())
    load_trained(other.module, tmp_path / "trained.safetensors")
    assert torch.equal(logits(one, examples["test"]), logits(other, examples["test"]))


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-gpt2", "tiny-roberta"])
@pytest.mark.parametrize("alpha", [4, 16])
def test_loftq_starts_as_near_to_the_whole_weights_as_its_rank_allows(
    model: str, alpha: int
) -> None:
    recipe = toy(model, f"strategy={{kind: loftq, r: 16, alpha: {alpha}}}", "quantize=4bit")
    whole = dict(made(toy(model, "strategy=linear_probe")).module.named_modules())
    for name, layer in lora_layers(made(recipe).module).items():
        ours = whole[name.removeprefix("base_model.model.")]
        weight = ours.weight.T if type(ours).__name__ == "Conv1D" else ours.weight
        lost = weight - dequantized(layer.get_base_layer())
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        left = (lost - layer.scaling["default"] * delta).norm()
        torch.testing.assert_close(left, torch.linalg.svdvals(lost)[16:].norm())  # Eckart-Young


@pytest.mark.parametrize(("model", "r"), [("tiny-bert", 60), ("tiny-llama", 32)])
def test_loftq_starts_nearer_to_the_whole_models_function(model: str, r: int) -> None:
    recipe = toy(model, f"strategy={{kind: loftq, r: {r}}}", "quantize=4bit")
    whole = base_logits(toy(model, "strategy=lora"))
    started = logits(made(recipe), rows(model)["test"])
    assert (started - whole).norm() < 0.5 * (base_logits(recipe) - whole).norm()


def test_loftq_refuses_files_that_are_not_of_the_model(tmp_path: Path) -> None:
    recipe = toy("tiny-bert", "strategy=loftq", "quantize=4bit")
    this, source = made(recipe), Path(find_model("tiny-bert").location)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    tensors = load_file(other / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({**tensors, name: -tensors[name]}, other / "model.safetensors")
    with pytest.raises(RunError, match=r"layer.1.output.dense is not the one that was"):
        make_up_for_rounding(this.module, other)
    del tensors[name]
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(RunError, match=r"0 tensors .* match .*dense.weight \(none\)"):
        make_up_for_rounding(this.module, other)


def test_a_stored_weight_is_found_in_any_file_and_under_any_prefix(tmp_path: Path) -> None:
    wanted, other = torch.rand(2, 3), torch.rand(2, 3)
    save_file({"layers.0.up.weight": other}, tmp_path / "model-1.safetensors")
    save_file({"text.layers.1.up.weight": wanted}, tmp_path / "model-2.safetensors")
    assert torch.equal(stored_weight(tmp_path, "model.layers.1.up"), wanted)
    save_file({"vision.layers.1.up.weight": other}, tmp_path / "model-3.safetensors")
    with pytest.raises(RunError, match=r"2 tensors .* match model.layers.1.up.weight"):
        stored_weight(tmp_path, "model.layers.1.up")


@pytest.mark.parametrize(("model", "held"), [("tiny-bert", "8bit"), ("tiny-llama", "none")])
def test_eva_starts_at_the_main_directions_and_as_the_base(model: str, held: str) -> None:
    recipe = toy(model, "strategy={kind: eva, r: 4, batches: 2}", f"quantize={held}")
    this, examples = made(recipe), rows(model)
    seen: dict[str, list[Tensor]] = {}
    layers = lora_layers(this.module)
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, n=n: seen.setdefault(n, []).append(x[0]))
        for n, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in itertools.islice(initialization_batches(recipe, this, examples), 2):
            this.module(**batch)
    for hook in hooks:
        hook.remove()
    recipe.strategy.prepare(this.module, lambda: initialization_batches(recipe, this, examples))
    for name, layer in layers.items():
        entered = torch.cat([x.flatten(0, -2) for x in seen[name]])
        entered = entered - entered.mean(0)
        most = torch.linalg.svdvals(entered)[:4].square().sum()
        caught = (entered @ layer.lora_A["default"].weight.T).square().sum()
        assert caught > 0.95 * most, name
    assert torch.equal(logits(this, examples["test"]), base_logits(recipe))


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_eva_leaves_padding_out(packing: str) -> None:
    found = []
    for mode in ("off", packing):
        recipe = toy("tiny-bert", "strategy={kind: eva, r: 2}", f"training.packing={mode}")
        this = made(recipe)
        recipe.strategy.prepare(
            this.module, lambda r=recipe, t=this: initialization_batches(r, t, rows("tiny-bert"))
        )
        found.append([m.lora_A["default"].weight for m in lora_layers(this.module).values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.abs(), other.abs(), atol=1e-2, rtol=0)


def test_eva_takes_no_more_batches_than_it_may_and_leaves_modes_alone() -> None:
    recipe = toy("tiny-bert", "strategy={kind: eva, r: 2, batches: 2}")
    this, taken = made(recipe), []

    def batches() -> Iterator[dict[str, Any]]:
        for batch in initialization_batches(recipe, this, rows("tiny-bert")):
            taken.append(batch)
            yield batch

    before = [module.training for module in this.module.modules()]
    recipe.strategy.prepare(this.module, batches)
    assert len(taken) == 2
    assert [module.training for module in this.module.modules()] == before


def test_eva_says_when_batches_are_too_short() -> None:
    recipe = toy("tiny-bert", "strategy={kind: eva, r: 60}")
    this = made(recipe)
    short = {"input_ids": torch.ones(2, 40).long(), "attention_mask": torch.ones(2, 40).long()}
    short["attention_mask"][:, 20:] = 0
    with pytest.raises(RunError, match="60 directions only in batches of 60 tokens or more"):
        recipe.strategy.prepare(this.module, lambda: iter([short]))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["pissa", "eva"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    zygote: Zygote, tmp_path: Path, variant: str
) -> None:
    settings = (f"strategy={variant}", "training.steps=12", "training.save_steps=4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert zygote.run(whole, *settings).code == 0
    ended = zygote.run(killed, *settings, before=killed_at(6))
    assert ended.code == -signal.SIGKILL, ended.said
    assert not (only_run(killed) / "record.json").exists()
    ended = zygote.run(killed, *settings)
    assert ended.code == 0 and "resuming at step 4" in ended.said, ended.said
    assert result(killed) == result(whole)
