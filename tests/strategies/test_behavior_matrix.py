"""The behavior matrix: what every strategy promises, on toy models, whole and quantized."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, load_base, load_config, load_tokenizer, meta_model
from peftkit.records.artifact import write_config, write_manifest
from peftkit.records.run_dir import RunDir
from peftkit.strategies.base import quiet_peft, trainable
from peftkit.training.integrity import IntegrityCheck, frozen, reason_unchanged
from support.behavior_matrix import CELLS, WAYS, Cell, is_refused, refusal
from support.run_processes import Zygote, record
from support.toy_models import NAMES, Trained, load_toy, logits, rows, train
from support.unquantized import unquantize

START_SLACK = {
    "dora": (1e-6, 2e-2),  # divides by a norm that it also multiplies by
    "pissa": (1e-5, 5e-2),  # takes apart the weights and puts them together again
    "olora": (1e-5, 5e-2),
    "oft": (1e-6, 2e-2),  # multiplies by a rotation of nothing
    "boft": (1e-6, 2e-2),
}
"""How far a start may be from the base's function, in fp32 and bf16; exact for all others."""
STARTS_ELSEWHERE = ("loftq", "prompt", "p_tuning", "prefix", "prefix-network", "mam", "peft")
"""Strategies that do not start from the base's function."""
RELOAD_SLACK = {
    "pissa": (1e-4, 1e-1),  # saved as the difference to the base as it was
    "olora": (1e-4, 1e-1),
}
SAVED_OTHERWISE = {
    "pissa": "an ordinary LoRA of twice the rank",
    "olora": "an ordinary LoRA of twice the rank",
    "p_tuning": "the embeddings that the network gave",
    "prefix-network": "the prefix that the network gave",
}
"""Ways whose artifact holds other tensors than those that trained, and what."""


@dataclass(frozen=True)
class Done:
    """A cell after five optimizer steps, and what was known before."""

    cell: Cell
    recipe: Recipe
    made: LoadedModel
    started: Tensor
    was_frozen: dict[str, Tensor]
    seen: Trained
    witness: IntegrityCheck
    folder: Path
    """Where the artifact lies."""

    @property
    def examples(self) -> Any:
        return rows(self.cell.model)["test"]

    def slack(self, table: dict[str, tuple[float, float]]) -> float:
        return table.get(self.cell.way, (0.0, 0.0))[self.cell.precision == "bf16"]


def done(cell: Cell, folder: Path) -> Done:
    """Train `cell` and save what was trained."""
    recipe = cell.recipe
    made = load_toy(recipe, cell.precision)
    started = logits(made, rows(cell.model)["test"])
    was_frozen = {name: content(t) for name, t in frozen(made.module).items()}
    witness = IntegrityCheck(made.module)
    seen = train(recipe, made)
    folder.mkdir()
    recipe.strategy.save(made.module, folder)
    return Done(cell, recipe, made, started, was_frozen, seen, witness, folder)


def content(tensor: Any) -> Tensor:
    """A copy of a tensor; of a 4-bit one with its scales, which are no tensors of the model."""
    state = getattr(tensor, "quant_state", None)
    parts = [tensor.detach().flatten().view(torch.uint8)]
    parts += [] if state is None else [state.absmax.detach().flatten().view(torch.uint8)]
    return torch.cat(parts).clone()


def starts_as_the_base(it: Done) -> None:
    packing = "auto" if it.recipe.strategy.packs else "off"
    probe = it.recipe.but(strategy="linear_probe", training__packing=packing)
    base = logits(load_toy(probe, it.cell.precision), it.examples)
    if it.cell.way not in STARTS_ELSEWHERE:
        torch.testing.assert_close(it.started, base, atol=it.slack(START_SLACK), rtol=0)
    elif it.cell.way != "peft":  # of which nothing is known here
        assert not torch.allclose(it.started, base, atol=1e-6), "it does start as the base"


def frozen_tensors_stay_bit_for_bit(it: Done) -> None:
    now = frozen(it.made.module)
    assert now.keys() == it.was_frozen.keys()
    assert [n for n, was in it.was_frozen.items() if not torch.equal(content(now[n]), was)] == []


def everything_trainable_gets_a_gradient_and_moves(it: Done) -> None:
    seen = it.seen
    without = [
        n for n, largest in seen.gradients.items() if largest == 0 and reason_unchanged(n) is None
    ]
    assert without == []
    proof = it.witness.verify(seen.master_weights, 0, SimpleNamespace(global_step=5))
    assert (proof.status, proof.unmoved, proof.changed) == ("proven", [], [])
    assert seen.losses[-1] != seen.losses[0]


def the_artifact_on_a_fresh_base_gives_the_same_logits(it: Done) -> None:
    again = load_toy(it.recipe, it.cell.precision, it.folder)
    said = logits(again, it.examples)
    here = logits(it.made, it.examples)
    torch.testing.assert_close(said, here, atol=it.slack(RELOAD_SLACK), rtol=0)
    assert not torch.equal(said, it.started)


def the_artifact_holds_what_was_trained_and_no_more(it: Done) -> None:
    suffixes = {path.suffix for path in it.folder.iterdir()}
    assert suffixes <= {".safetensors", ".json"} and ".safetensors" in suffixes
    held = 0
    for path in it.folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            held += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    trained = it.made.parameters.trainable
    if it.cell.way in SAVED_OTHERWISE:
        same_by_chance = it.cell.model == "tiny-modernbert"  # both come to 17,026
        assert held != trained or same_by_chance, "then it need not be among those"
    else:
        assert held == trained


def peft_alone_loads_it(it: Done) -> None:
    if it.recipe.strategy.loads_with != "peft" or it.cell.quantize != "none":
        return
    from peft import PeftModel

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[it.cell.precision]
    location = find_model(it.cell.model).location
    base = it.recipe.task.auto_class().from_pretrained(
        location, config=config_of(it.cell), dtype=dtype
    )
    with quiet_peft():
        alone = PeftModel.from_pretrained(base, str(it.folder), autocast_adapter_dtype=False)
    alone.eval()
    slack = {"fp32": 1e-4, "bf16": 2e-1}[it.cell.precision]
    ours = logits(it.made, it.examples)
    torch.testing.assert_close(padded_logits(alone, it.cell.model), ours, atol=slack, rtol=0)


def the_merged_checkpoint_predicts_what_base_and_adapter_predict(it: Done) -> None:
    cell, recipe, run = it.cell, it.recipe, it.folder.parent
    write_run(it)
    if not recipe.strategy.mergeable:
        with pytest.raises(RunError, match=r"cannot be merged: .* - use peftkit export "):
            peftkit.merge(it.folder, run / "streamed", verify="off")
        return
    if cell.precision != "fp32":
        return
    base = base_of(cell, recipe)
    unquantize(base)
    adapted = recipe.strategy.load(base, it.folder, recipe.task).eval()
    expected = padded_logits(adapted, cell.model)
    peftkit.merge(it.folder, run / "streamed", verify="off")
    plain = recipe.task.auto_class().from_pretrained(run / "streamed")
    assert plain.config.architectures == [type(plain).__name__]
    torch.testing.assert_close(padded_logits(plain, cell.model), expected, atol=1e-4, rtol=1e-3)


def write_run(it: Done) -> None:
    """Complete the artifact, and the run around it, so that it can be merged."""
    source, run = find_model(it.cell.model), RunDir(it.folder.parent)
    run.begin(it.recipe, source, it.recipe.data.resolve())
    run.describe(world={"precision": it.cell.precision}, names=NAMES)
    write_config(it.folder, it.made.module)
    write_manifest(it.folder, it.recipe, source, NAMES)


def the_plan_counts_what_the_run_has(it: Done) -> None:
    module, planned = meta_model(it.recipe, find_model(it.cell.model).location, NAMES)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert planned == it.made.parameters
    assert planned.trainable == sum(p.numel() for p in trainable(it.made.module).values())
    whole = base_of(it.cell, it.recipe.but(quantize="none", strategy="full"))
    in_base = sum(p.numel() for p in whole.parameters())
    assert planned.base + planned.head == in_base
    assert planned.total == in_base + planned.adapter


def the_recipe_survives_yaml(it: Done) -> None:
    path = it.folder.parent / f"{it.recipe.name}.yaml"
    path.write_text(yaml.safe_dump(it.recipe.settings(), sort_keys=False))
    again = Recipe.load(str(path))
    assert again == it.recipe
    source = find_model(it.cell.model)
    assert again.digest(source, source) == it.recipe.digest(source, source)


def gradient_checkpointing_trains_alike(it: Done) -> None:
    if (it.cell.model, it.cell.quantize, it.cell.precision) != ("tiny-bert", "none", "fp32"):
        return  # once a family
    recipe = it.recipe.but(training__gradient_checkpointing=True)
    made = load_toy(recipe)
    assert trainable(made.module).keys() == it.seen.gradients.keys()
    seen = train(recipe, made, steps=3)
    assert seen.losses[:2] == pytest.approx(it.seen.losses[:2], abs=1e-5)
    assert any(getattr(module, "gradient_checkpointing", False) for module in made.module.modules())
    without = [
        n for n, largest in seen.gradients.items() if largest == 0 and reason_unchanged(n) is None
    ]
    assert without == []


CLAUSES: tuple[Callable[[Done], None], ...] = (
    starts_as_the_base,
    frozen_tensors_stay_bit_for_bit,
    everything_trainable_gets_a_gradient_and_moves,
    the_artifact_on_a_fresh_base_gives_the_same_logits,
    the_artifact_holds_what_was_trained_and_no_more,
    peft_alone_loads_it,
    the_plan_counts_what_the_run_has,
    gradient_checkpointing_trains_alike,
    the_recipe_survives_yaml,
    the_merged_checkpoint_predicts_what_base_and_adapter_predict,
)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_contract_is_kept(
    cell: Cell,
    tmp_path: Path,
    subtests: pytest.Subtests,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("cell", [cell.way, cell.model, cell.quantize, cell.precision])
    reason = refusal(cell)
    record_property("refused", reason)
    assert (reason is not None) == is_refused(cell), reason or "is not refused"
    if reason is not None:
        assert " - use " in reason, "it says what to do"
        return
    it = done(cell, tmp_path / "artifact")
    for clause in CLAUSES:
        with subtests.test(clause.__name__):
            clause(it)


def base_of(cell: Cell, recipe: Recipe) -> Any:
    """The cell's base with a new head, padded and in fp32, held as `recipe` says."""
    location = find_model(cell.model).location
    return load_base(recipe, location, config_of(cell), torch.float32, packed=False, head=None)


def config_of(cell: Cell) -> Any:
    """The model's configuration as `load_model` makes it."""
    location = find_model(cell.model).location
    config = load_config(cell.recipe, location, NAMES)
    config.pad_token_id = load_tokenizer(location).pad_token_id
    return config


@torch.no_grad()
def padded_logits(model: Any, name: str) -> Tensor:
    """What transformers' own code says of the test split."""
    tokenizer = load_tokenizer(find_model(name).location)
    columns = {"input_ids": rows(name)["test"]["input_ids"]}
    batch = tokenizer.pad(columns, return_tensors="pt", padding_side="right")
    return model(**batch).logits.float()


@pytest.mark.parametrize(("way", "blocks"), [("linear_probe", 0), ("last-block", 1), ("lora", 2)])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_nothing_below_the_lowest_trained_layer_takes_part_in_the_backward_pass(
    model: str, way: str, blocks: int
) -> None:
    from peftkit.models.architectures import blocks_of
    from peftkit.planning.plan import blocks_with_gradient

    made = load_toy(Cell(way, model).recipe).module.train()
    graphs: list[bool] = []
    for _, block in blocks_of(made):
        block.register_forward_hook(
            lambda _, __, output: graphs.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    examples = rows(model)["test"]
    batch = load_toy(Cell(way, model).recipe).batcher([examples[i] for i in range(4)])
    batch.pop("labels")
    made(**batch)
    assert graphs == [False] * (2 - blocks) + [True] * blocks
    assert blocks_with_gradient(made) == blocks


ON_TWO_RANKS = [way for way in WAYS if not is_refused(Cell(way, "tiny-bert"))]


@pytest.mark.parametrize("way", ON_TWO_RANKS)
def test_a_real_run_on_two_ranks_with_accumulation_proves_its_training(
    way: str, zygote: Zygote, tmp_path: Path
) -> None:
    settings = (
        f"strategy={WAYS[way]}",
        "training.steps=8",
        "training.warmup_ratio=0",
        "training.micro_batch_size=2",
        "training.evaluate=4",
        "training.precision=fp32",
    )
    ended = zygote.run(tmp_path, *settings, ranks=2)
    assert ended.codes == [0, 0], ended.said + ended.others
    said = record(tmp_path)
    assert said["proof"]["status"] == "proven", said["proof"]
    assert said["world"]["ranks"] == 2 and said["parameters"]["trainable"] > 0
    planned = peftkit.plan(Cell(way, "tiny-bert").recipe).parameters
    assert said["parameters"] == planned.model_dump()


RELOADED = [
    Cell("full", "tiny-bert"),
    Cell("last-block", "tiny-llama"),
    Cell("lora", "tiny-bert", "4bit", "bf16"),
    Cell("dora", "tiny-llama", "8bit"),
    Cell("pissa", "tiny-t5"),
    Cell("loftq", "tiny-bert", "4bit"),
    Cell("adalora", "tiny-llama"),
    Cell("vera", "tiny-bert"),
    Cell("oft", "tiny-llama", "4bit"),
    Cell("boft", "tiny-bert"),
    Cell("lokr", "tiny-t5"),
    Cell("ia3", "tiny-bert", "8bit"),
    Cell("peft", "tiny-llama"),
    Cell("houlsby", "tiny-bert", "8bit"),
    Cell("parallel", "tiny-llama", "4bit"),
    Cell("compacter", "tiny-t5"),
    Cell("prompt", "tiny-llama", "4bit"),
    Cell("p_tuning", "tiny-bert"),
    Cell("prefix-network", "tiny-t5"),
    Cell("mam", "tiny-bert", "4bit"),
    Cell("lora+bitfit", "tiny-bert"),
]
RELOAD = """
import sys
from pathlib import Path
import torch
from test_behavior_matrix import RELOADED
from support.toy_models import load_toy, logits, rows
for number, cell in enumerate(RELOADED):
    folder = Path(sys.argv[1]) / str(number)
    made = load_toy(cell.recipe, cell.precision, folder)
    torch.save(logits(made, rows(cell.model)["test"]), folder / "logits.pt")
"""


def test_artifacts_give_the_same_logits_in_a_fresh_process(tmp_path: Path) -> None:
    ours = [done(cell, tmp_path / str(number)) for number, cell in enumerate(RELOADED)]
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests, tests / "strategies"))),
    }
    subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], check=True, env=environment, cwd=tmp_path
    )
    for it in ours:
        there = torch.load(it.folder / "logits.pt")
        slack = max(1e-5, it.slack(RELOAD_SLACK))  # another thread count may add in another order
        now = logits(it.made, it.examples)
        torch.testing.assert_close(there, now, atol=slack, rtol=0, msg=str(it.cell))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("way", ["lora", "pfeiffer"])
@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_a_real_encoder_behaves_the_same(
    way: str, quantize: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    it = done(Cell(way, "sentence-transformers/all-MiniLM-L6-v2", quantize), tmp_path / "artifact")
    for clause in CLAUSES[:5]:
        with subtests.test(clause.__name__):
            clause(it)
