"""AdamW with master weights: fp32 updates of bf16 parameters, and exact resume."""

import copy
import io

import pytest
import torch
from torch import nn

from peftkit.training.optimizer import MasterWeightAdamW, lr_lambda, warmup_steps


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    return layers.to(dtype)


def gradients_of(module: nn.Module, seed: int, scale: float = 1.0) -> None:
    """Give every weight a gradient."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.grad = (scale * torch.randn(weight.shape, generator=generator)).to(weight.dtype)


def test_in_fp32_it_is_torchs_adamw_bit_for_bit() -> None:
    ours, theirs = model(), model()
    made = MasterWeightAdamW(ours.named_parameters(), 0.1, 0.01, None)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    kept = [p for p in theirs.parameters() if p.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}], lr=0.1
    )
    for seed in range(5):
        gradients_of(ours, seed)
        gradients_of(theirs, seed)
        made.step()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(master is p for master, p in zip(made.master_weights.values(), ours.parameters()))  # noqa: B905


def test_updates_below_a_bf16_step_are_kept() -> None:
    module = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.ones_(module.weight)
    made = MasterWeightAdamW(module.named_parameters(), 1e-4, 0.0, None)
    for _ in range(100):  # a bf16 one has no neighbor within 0.0039
        module.weight.grad = torch.ones_like(module.weight)
        made.step()
    assert made.master_weights["weight"].dtype == torch.float32
    assert torch.allclose(made.master_weights["weight"], torch.full((4, 4), 0.99), atol=1e-4)
    assert torch.equal(module.weight, made.master_weights["weight"].to(torch.bfloat16))
    assert not torch.equal(module.weight, torch.ones_like(module.weight))


def test_micro_batches_are_added_up_in_fp32() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    made = MasterWeightAdamW(module.named_parameters(), 0.1, 0.0, None)
    for part in (1.0, *[2.0**-9] * 8):  # in bf16, 1 + 2**-9 is 1
        module.weight.grad = torch.full_like(module.weight, part)
        made.accumulate_gradients()
        assert module.weight.grad is None
    (master,) = made.master_weights.values()
    assert float(master.grad) == 1.0 + 8 * 2.0**-9  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_clipped_by_their_norm_over_all_weights(dtype: torch.dtype) -> None:
    module = model(dtype)
    made = MasterWeightAdamW(module.named_parameters(), 0.1, 0.0, 0.5)
    gradients_of(module, 0, scale=100.0)
    norm = torch.stack([p.grad.float().norm() for p in module.parameters()]).norm()  # type: ignore[union-attr]
    made.step()
    assert made.grad_norm == pytest.approx(float(norm), rel=1e-3)
    moments = [state["exp_avg"] for state in made.state.values()]
    clipped = torch.stack([moment.norm() for moment in moments]).norm() / (1 - 0.9)
    assert float(clipped) == pytest.approx(0.5, rel=1e-3)
    assert all(p.grad is None for p in [*module.parameters(), *made.master_weights.values()])


def test_decay_is_not_on_biases_norms_and_vectors() -> None:
    names = {
        "encoder.dense.weight": nn.Parameter(torch.ones(2, 2)),
        "encoder.dense.bias": nn.Parameter(torch.ones(2)),
        "LayerNorm.weight": nn.Parameter(torch.ones(2)),
        "adapter_norm.weight": nn.Parameter(torch.ones(2, 2)),
        "scale": nn.Parameter(torch.ones(2)),
    }
    made = MasterWeightAdamW(names.items(), 0.1, 0.5, None)
    for weight in names.values():
        weight.grad = torch.zeros_like(weight)
    made.step()
    moved = {name for name, weight in names.items() if not torch.equal(weight, weight * 0 + 1)}
    assert moved == {"encoder.dense.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit_and_holds_no_pickle(dtype: torch.dtype) -> None:
    module = model(dtype)
    made = MasterWeightAdamW(module.named_parameters(), 0.1, 0.01, 1.0)
    for seed in range(3):
        gradients_of(module, seed)
        made.step()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    twin = copy.deepcopy(module)
    loaded = MasterWeightAdamW(twin.named_parameters(), 0.5, 0.0, 1.0)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3, 6):
        for each, optimizer in ((module, made), (twin, loaded)):
            gradients_of(each, seed)
            optimizer.step()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        made.master_weights.values(), loaded.master_weights.values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_state_of_the_earlier_version_is_read() -> None:
    module = model(torch.bfloat16)
    made = MasterWeightAdamW(module.named_parameters(), 0.1, 0.01, 1.0)
    gradients_of(module, 0)
    made.step()
    state = made.state_dict()
    state["masters"] = state.pop("master_weights")
    again = MasterWeightAdamW(copy.deepcopy(module).named_parameters(), 0.1, 0.01, 1.0)
    for weights in again.master_weights.values():
        weights.data.zero_()
    again.load_state_dict(state)
    for name, weights in made.master_weights.items():
        assert torch.equal(weights, again.master_weights[name])


def test_the_warm_up_rises_to_the_highest_rate() -> None:
    for schedule in ("linear", "cosine", "constant", "exponential", "step"):
        factor = lr_lambda(schedule, 4, 20)
        assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert lr_lambda("linear", 0, 20)(0) == 1.0
    assert warmup_steps(0.06, 20) == 1
    assert warmup_steps(0.0, 20) == 0


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("linear", 0.5, 0.0),
        ("cosine", 0.5, 0.0),
        ("constant", 1.0, 1.0),
        ("exponential", 0.1, 0.01),
        ("step", 0.125, 1 / 64),
    ],
)
def test_each_schedule_has_its_shape(schedule: str, middle: float, end: float) -> None:
    factor = lr_lambda(schedule, 20, 120)
    assert factor(20) == 1.0
    assert factor(70) == pytest.approx(middle)
    assert factor(120) == pytest.approx(end)
    rates = [factor(step) for step in range(20, 121)]
    assert rates == sorted(rates, reverse=True)


def test_the_step_schedule_is_halved_five_times_within_the_run() -> None:
    factor = lr_lambda("step", 0, 60)
    assert sorted({factor(step) for step in range(60)}) == [2.0**-n for n in range(5, -1, -1)]
