"""AdamW with fp32 master weights for bf16 parameters, and the learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.strategies.base import LRMultiplier, TrainingHook

DEFAULT_MULTIPLIER = LRMultiplier()
NO_DECAY = ("bias", "norm")


class MasterWeightAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) with state, updates and gradient accumulation in fp32.

    fp32 parameters are updated in place. For a bf16 parameter an fp32 master weight is kept:
    `accumulate_gradients` adds the gradient of each micro-batch to it in fp32; `step` clips the
    gradients, updates the master weight and copies it to the parameter. Clipping is done here
    because the gradients of the parameters have been dropped by then.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float,
        max_grad_norm: float | None,
        lr_multipliers: Mapping[str, LRMultiplier] | None = None,
    ) -> None:
        parameters = dict(named)
        self.master_weights = {
            name: master_weight(parameter) for name, parameter in parameters.items()
        }
        self.copies = [
            (p, self.master_weights[n])
            for n, p in parameters.items()
            if p is not self.master_weights[n]
        ]
        self.max_grad_norm = max_grad_norm
        self.grad_norm = 0.0
        """Gradient norm of the last step before clipping."""
        self.training_hook: TrainingHook | None = None
        """The strategy's hook, called after each step."""
        grouped: dict[tuple[LRMultiplier, bool], list[nn.Parameter]] = {}
        for name, master in self.master_weights.items():
            multiplier = (lr_multipliers or {}).get(name, DEFAULT_MULTIPLIER)
            group = (multiplier, is_excluded_from_decay(name, parameters[name]))
            grouped.setdefault(group, []).append(master)
        # the Trainer logs the learning rate of the first group
        order = sorted(
            grouped, key=lambda group: (group[0] != DEFAULT_MULTIPLIER, group[0].start, group[1])
        )
        super().__init__(
            [
                {
                    "params": grouped[multiplier, no_decay],
                    "weight_decay": 0.0 if no_decay else weight_decay,
                    "lr": lr * multiplier.factor,
                    "start": multiplier.start,
                }
                for multiplier, no_decay in order
            ],
            lr=lr,
        )

    def accumulate_gradients(self) -> None:
        """Move the gradients of this micro-batch to the master weights."""
        for parameter, master in self.copies:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip the gradients, update the master weights, copy them to the parameters, and drop the
        gradients."""
        self.accumulate_gradients()
        updated = [m for m in self.master_weights.values() if m.grad is not None]
        norm = nn.utils.get_total_norm([m.grad for m in updated])  # type: ignore[misc]
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(updated, self.max_grad_norm, norm)
        self.grad_norm = float(norm)
        super().step(closure)
        for parameter, master in self.copies:
            parameter.copy_(master)
        if self.training_hook is not None:
            self.training_hook.after_step()
        for master in updated:
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, the master weights and the state of the training hook."""
        state = {
            **super().state_dict(),
            "master_weights": {n: m.detach() for n, m in self._copies()},
        }
        if self.training_hook is not None:
            state["training_hook"] = self.training_hook.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a saved state, master weights included."""
        saved = dict(state_dict)
        # checkpoints of peftkit 0.1.0 call them "masters" and "companion"
        copies = saved.pop("master_weights", saved.pop("masters", None))
        hook_state = saved.pop("training_hook", saved.pop("companion", None))
        if self.training_hook is not None:
            self.training_hook.load_state_dict(hook_state)
        super().load_state_dict(saved)
        for name, master in self._copies():
            master.copy_(copies[name])

    def _copies(self) -> list[tuple[str, Tensor]]:
        copied = {id(master) for _, master in self.copies}
        return [(name, m) for name, m in self.master_weights.items() if id(m) in copied]


def master_weight(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself if it is in fp32, else an fp32 copy."""
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=True)


def is_excluded_from_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has no weight decay: biases, norms and other vectors.

    Column vectors are included: the scales of IA3 and BOFT are columns, neutral at 1 instead of 0.
    """
    axes = sum(size > 1 for size in parameter.shape)
    return axes < 2 or any(word in name.lower() for word in NO_DECAY)


def lr_lambdas(
    optimizer: torch.optim.Optimizer, schedule: str, warmup: int, steps: int
) -> list[Callable[[int], float]]:
    """The `lr_lambda` of each parameter group; 0 before the start of the group."""
    common = lr_lambda(schedule, warmup, steps)

    def factor(start: float) -> Callable[[int], float]:
        return lambda step: common(step) if step >= math.floor(start * steps) else 0.0

    return [factor(group["start"]) for group in optimizer.param_groups]


def lr_lambda(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """The factor of the learning rate by step, for `LambdaLR`: rises to 1 in `warmup` steps, then
    follows `schedule` (the recipe's `lr_scheduler_type`).

    `linear` and `cosine` decay to 0, `exponential` to 1 %; `step` halves it five times.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "constant": 1.0,
            "exponential": float(0.01**done),
            "step": 0.5 ** math.floor(6 * done),
        }[schedule]

    return factor


def warmup_steps(ratio: float, steps: int) -> int:
    """The number of warm-up steps, for a `ratio` of all `steps`."""
    return math.floor(ratio * steps)
