"""The behaviour matrix: what every strategy promises, on toy models, whole and quantised."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import peftkit
from peftkit.errors import RecipeError, RunError
from peftkit.model import Assembled, blueprint, configure, load_base, load_tokenizer
from peftkit.proof import Witness, excuse, frozen
from peftkit.quantization import unquantize
from peftkit.recipe import Recipe
from peftkit.sources import find_model
from peftkit.strategies import Strategy, trainable
from toys import NAMES, Trained, assembled, logits, rows, toy, train

VARIANTS = {
    "full": "full",
    "probe": "{kind: frozen, last: 0}",
    "last-block": "{kind: frozen, last: 1}",
    "norms": "{kind: frozen, last: 0, patterns: ['*[Nn]orm*']}",
    "lora": "{kind: lora, r: 4, dropout: 0.0}",
    "rslora": "{kind: lora, r: 4, variant: rslora}",
    "dora": "{kind: lora, r: 4, variant: dora}",
    "houlsby": "{kind: adapter, variant: houlsby}",
    "pfeiffer": "{kind: adapter, variant: pfeiffer}",
    "parallel": "{kind: adapter, variant: parallel}",
}
NEW_KINDS = set(Strategy.kinds()) - {"full", "frozen", "lora", "adapter"}
VARIANTS |= {kind: kind for kind in sorted(NEW_KINDS)}  # a new strategy is held to all of this too
TRAIN_THE_BASE = ("full", "last-block", "norms")


@dataclass(frozen=True)
class Cell:
    """One strategy on one model, held in one way."""

    variant: str
    model: str
    quantize: str = "none"
    precision: str = "fp32"

    def __str__(self) -> str:
        return "-".join([self.variant, self.model, self.quantize, self.precision])

    @property
    def recipe(self) -> Recipe:
        strategy = f"strategy={VARIANTS[self.variant]}"
        precision = f"training.precision={self.precision}"
        return toy(self.model, strategy, f"quantize={self.quantize}", precision)


ALLOWED = [
    Cell(variant, model, quantize)
    for variant in VARIANTS
    for model in ("tiny-bert", "tiny-llama")
    for quantize in ("none", "8bit", "4bit")
    if quantize == "none" or variant not in TRAIN_THE_BASE
]
IN_BF16 = [
    Cell(cell.variant, cell.model, cell.quantize, "bf16")
    for cell in ALLOWED
    if cell.model == "tiny-bert"
]
every_cell = pytest.mark.parametrize("cell", [*ALLOWED, *IN_BF16], ids=str)


@dataclass(frozen=True)
class After:
    """A cell after five optimizer steps, and what was known before."""

    made: Assembled
    started: Tensor
    was_frozen: dict[str, Tensor]
    seen: Trained
    witness: Witness


@cache
def after(cell: Cell) -> After:
    """Train `cell` once for all tests."""
    made = assembled(cell.recipe, cell.precision)
    started = logits(made, rows(cell.model)["test"])
    was_frozen = {name: content(t) for name, t in frozen(made.module).items()}
    witness = Witness(made.module)
    return After(made, started, was_frozen, train(cell.recipe, made), witness)


def content(tensor: Any) -> Tensor:
    """A copy of a tensor; of a 4-bit one with its scales, which are no tensors of the model."""
    state = getattr(tensor, "quant_state", None)
    parts = [tensor.detach().flatten().view(torch.uint8)]
    parts += [] if state is None else [state.absmax.detach().flatten().view(torch.uint8)]
    return torch.cat(parts).clone()


@pytest.mark.parametrize("variant", TRAIN_THE_BASE)
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_what_trains_the_base_is_refused_on_a_quantised_one(variant: str, quantize: str) -> None:
    with pytest.raises(RecipeError, match=f"'quantize: {quantize}' freezes them - use strategy"):
        assert Cell(variant, "tiny-bert", quantize).recipe


@every_cell
def test_training_starts_from_the_base_models_function(cell: Cell) -> None:
    probe = cell.recipe.but(strategy={"kind": "frozen", "last": 0})
    base = logits(assembled(probe, cell.precision), rows(cell.model)["test"])
    # DoRA divides by a norm that it also multiplies by
    slack = {"fp32": 1e-6, "bf16": 2e-2}[cell.precision] if cell.variant == "dora" else 0.0
    torch.testing.assert_close(after(cell).started, base, atol=slack, rtol=0)


@every_cell
def test_frozen_tensors_stay_bit_for_bit_with_an_evaluation_in_between(cell: Cell) -> None:
    now = frozen(after(cell).made.module)
    assert now.keys() == after(cell).was_frozen.keys()
    moved = [
        n for n, was in after(cell).was_frozen.items() if not torch.equal(content(now[n]), was)
    ]
    assert moved == []


@every_cell
def test_everything_trainable_gets_a_gradient_and_moves(cell: Cell) -> None:
    seen = after(cell).seen
    without = [n for n, largest in seen.gradients.items() if largest == 0 and excuse(n) is None]
    assert without == []
    proof = after(cell).witness.testify(seen.masters, 0, SimpleNamespace(global_step=5))
    assert (proof.status, proof.unmoved, proof.changed) == ("proven", [], [])
    assert seen.losses[-1] != seen.losses[0]


@every_cell
def test_the_artefact_on_a_fresh_base_gives_the_same_logits(cell: Cell, tmp_path: Path) -> None:
    cell.recipe.strategy.save(after(cell).made.module, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    again = assembled(cell.recipe, cell.precision, tmp_path)
    examples = rows(cell.model)["test"]
    assert torch.equal(logits(again, examples), logits(after(cell).made, examples))
    assert not torch.equal(logits(again, examples), after(cell).started)


@pytest.mark.parametrize("cell", ALLOWED, ids=str)
def test_merged_weights_are_an_ordinary_checkpoint_of_the_same_function(
    cell: Cell, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    made, recipe = after(cell).made, cell.recipe
    if not recipe.strategy.foldable:
        with pytest.raises(RunError, match="adapter' cannot be merged: it adds layers"):
            recipe.strategy.merge(made.module)
        return
    recipe.strategy.save(made.module, tmp_path)
    base = load_base(recipe, find_model(cell.model).location, config_of(cell), torch.float32, False)
    unquantize(base)  # the weights that the adapter was trained against
    adapted = recipe.strategy.load(base, tmp_path, recipe.task).eval()
    expected = padded_logits(adapted, cell.model)
    if cell.quantize != "8bit":  # which also rounds activations
        torch.testing.assert_close(
            expected, logits(made, rows(cell.model)["test"]), atol=1e-5, rtol=1e-5
        )
    merged = recipe.strategy.merge(adapted)
    torch.testing.assert_close(padded_logits(merged, cell.model), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert type(plain) is type(merged) and not hasattr(plain.config, "quantization_config")
    torch.testing.assert_close(padded_logits(plain, cell.model), expected, atol=1e-5, rtol=1e-5)


def config_of(cell: Cell) -> Any:
    """The model's configuration as `assemble` makes it."""
    location = find_model(cell.model).location
    config = configure(cell.recipe, location, NAMES)
    config.pad_token_id = load_tokenizer(location).pad_token_id
    return config


@torch.no_grad()
def padded_logits(model: Any, name: str) -> Tensor:
    """What transformers' own code says of the test split."""
    tokenizer = load_tokenizer(find_model(name).location)
    columns = {"input_ids": rows(name)["test"]["input_ids"]}
    batch = tokenizer.pad(columns, return_tensors="pt", padding_side="right")
    return model(**batch).logits


@pytest.mark.parametrize("cell", ALLOWED, ids=str)
def test_the_plan_counts_what_the_run_has(cell: Cell) -> None:
    made, recipe = after(cell).made, cell.recipe
    module, planned = blueprint(recipe, find_model(cell.model).location, NAMES)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert planned == made.parameters
    assert planned.trainable == sum(p.numel() for p in trainable(made.module).values())
    whole = load_base(
        toy(cell.model), find_model(cell.model).location, config_of(cell), torch.float32, False
    )
    in_base = sum(p.numel() for p in whole.parameters())
    assert planned.base + planned.head == in_base
    assert planned.total == in_base + planned.adapter
    assert (planned.adapter > 0) == (recipe.strategy.kind in ("lora", "adapter"))


@every_cell
def test_the_recipe_survives_yaml(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / f"{cell.recipe.name}.yaml"
    path.write_text(yaml.safe_dump(cell.recipe.settings(), sort_keys=False))
    again = Recipe.load(str(path))
    assert again == cell.recipe
    source = find_model(cell.model)
    assert again.digest(source, source) == cell.recipe.digest(source, source)


@pytest.mark.parametrize("cell", ALLOWED, ids=str)
def test_gradient_checkpointing_trains_the_same_tensors_in_the_same_way(cell: Cell) -> None:
    recipe = cell.recipe.but(training__gradient_checkpointing=True)
    made = assembled(recipe)
    assert trainable(made.module).keys() == after(cell).seen.gradients.keys()
    seen = train(recipe, made, steps=3)
    assert seen.losses == pytest.approx(after(cell).seen.losses[:3], abs=1e-6)
    assert any(getattr(module, "gradient_checkpointing", False) for module in made.module.modules())


@pytest.mark.parametrize(("variant", "blocks"), [("probe", 0), ("last-block", 1), ("lora", 2)])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_nothing_below_the_lowest_trained_layer_takes_part_in_the_backward_pass(
    model: str, variant: str, blocks: int
) -> None:
    from peftkit.architectures import blocks_of
    from peftkit.planning import blocks_with_gradient

    made = assembled(Cell(variant, model).recipe).module.train()
    graphs: list[bool] = []
    for _, block in blocks_of(made):
        block.register_forward_hook(
            lambda _, __, output: graphs.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    examples = rows(model)["test"]
    batch = assembled(Cell(variant, model).recipe).batcher([examples[i] for i in range(4)])
    batch.pop("labels")
    made(**batch)
    assert graphs == [False] * (2 - blocks) + [True] * blocks
    assert blocks_with_gradient(made) == blocks


@pytest.mark.parametrize(
    ("variant", "quantize"),
    [("full", "none"), ("probe", "4bit"), ("pfeiffer", "8bit"), ("lora", "4bit"), ("dora", "8bit")],
)
def test_a_real_run_proves_its_training(variant: str, quantize: str, tmp_path: Path) -> None:
    settings = {"steps": 6, "proof": "run", "threads": 1, "evaluate": 2, "batch_size": 8}
    recipe = Cell(variant, "tiny-bert", quantize).recipe.but(training=settings)
    record = peftkit.train(recipe, tmp_path)
    assert record.proof is not None and record.cost is not None
    assert (record.proof.status, record.proof.changed) == ("proven", [])
    assert record.parameters == peftkit.plan(recipe).parameters
    assert record.steps == peftkit.plan(recipe).steps == 6
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert [said["label"] in NAMES for said in peftkit.predict(folder, ["a goal", "soup"])]


RELOADED = [
    Cell("full", "tiny-bert"),
    Cell("last-block", "tiny-llama"),
    Cell("lora", "tiny-bert", "4bit", "bf16"),
    Cell("dora", "tiny-llama", "8bit"),
    Cell("houlsby", "tiny-bert", "8bit"),
    Cell("parallel", "tiny-llama", "4bit"),
]
RELOAD = """
import sys
from pathlib import Path
import torch
from test_behaviours import RELOADED
from toys import assembled, logits, rows
for number, cell in enumerate(RELOADED):
    folder = Path(sys.argv[1]) / str(number)
    made = assembled(cell.recipe, cell.precision, folder)
    torch.save(logits(made, rows(cell.model)["test"]), folder / "logits.pt")
"""


def test_artefacts_give_the_same_logits_in_a_fresh_process(tmp_path: Path) -> None:
    for number, cell in enumerate(RELOADED):
        (tmp_path / str(number)).mkdir()
        cell.recipe.strategy.save(after(cell).made.module, tmp_path / str(number))
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], check=True, env=environment, cwd=tmp_path
    )
    for number, cell in enumerate(RELOADED):
        there = torch.load(tmp_path / str(number) / "logits.pt")
        here_now = logits(after(cell).made, rows(cell.model)["test"])
        # another thread count may add in another order
        torch.testing.assert_close(there, here_now, atol=1e-5, rtol=0, msg=str(cell))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("variant", ["lora", "pfeiffer"])
@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_a_real_encoder_behaves_the_same(variant: str, quantize: str, tmp_path: Path) -> None:
    cell = Cell(variant, "sentence-transformers/all-MiniLM-L6-v2", quantize)
    done, examples = after(cell), rows(cell.model)["test"]
    probe = cell.recipe.but(strategy={"kind": "frozen", "last": 0})
    assert torch.equal(done.started, logits(assembled(probe), examples))
    proof = done.witness.testify(done.seen.masters, 0, SimpleNamespace(global_step=5))
    assert proof.status == "proven"
    assert blueprint(cell.recipe, find_model(cell.model).location, NAMES)[1] == done.made.parameters
    cell.recipe.strategy.save(done.made.module, tmp_path)
    again = assembled(cell.recipe, cell.precision, tmp_path)
    assert torch.equal(logits(again, examples), logits(done.made, examples))
