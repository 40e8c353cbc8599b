"""AdamW on fp32 master copies of weights that rest in bf16, and the schedules of its rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.strategies.base import LRMultiplier, TrainingHook

COMMON = LRMultiplier()
NO_DECAY = ("bias", "norm")


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) whose state, updates and accumulation are all in fp32.

    Parameters that rest in fp32 are their own masters. A bf16 weight keeps a master copy here:
    `collect` adds its gradient, in fp32, after each micro-batch; `step` clips, updates the master
    and writes the rounded value back. Clipping is done here because the model's own gradients
    are gone by then.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        decay: float,
        clip: float | None,
        lr_multipliers: Mapping[str, LRMultiplier] | None = None,
    ) -> None:
        parameters = dict(named)
        self.masters = {name: master_of(parameter) for name, parameter in parameters.items()}
        self.pairs = [
            (p, self.masters[n]) for n, p in parameters.items() if p is not self.masters[n]
        ]
        self.clip = clip
        self.gradient_norm = 0.0
        """Norm of the last step's gradient before clipping."""
        self.training_hook: TrainingHook | None = None
        """What the strategy does after each step."""
        grouped: dict[tuple[LRMultiplier, bool], list[nn.Parameter]] = {}
        for name, master in self.masters.items():
            pace = (lr_multipliers or {}).get(name, COMMON)
            kind = (pace, is_undecayed(name, parameters[name]))
            grouped.setdefault(kind, []).append(master)
        # the common pace first: its rate is the one that is logged
        order = sorted(grouped, key=lambda kind: (kind[0] != COMMON, kind[0].start, kind[1]))
        super().__init__(
            [
                {
                    "params": grouped[pace, undecayed],
                    "weight_decay": 0.0 if undecayed else decay,
                    "lr": lr * pace.factor,
                    "start": pace.start,
                }
                for pace, undecayed in order
            ],
            lr=lr,
        )

    def collect(self) -> None:
        """Move the gradients of this micro-batch to the masters."""
        for parameter, master in self.pairs:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip, update the masters, write them back to the weights, drop the gradients."""
        self.collect()
        masters = [m for m in self.masters.values() if m.grad is not None]
        norm = nn.utils.get_total_norm([m.grad for m in masters])  # type: ignore[misc]
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(masters, self.clip, norm)
        self.gradient_norm = float(norm)
        super().step(closure)
        for parameter, master in self.pairs:
            parameter.copy_(master)
        if self.training_hook is not None:
            self.training_hook.after_step()
        for master in masters:
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, the master copies and the companion's state."""
        state = {**super().state_dict(), "masters": {n: m.detach() for n, m in self._copies()}}
        if self.training_hook is not None:
            state["training_hook"] = self.training_hook.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put a saved state, and the masters' values, in place."""
        saved = dict(state_dict)
        copies = saved.pop("masters")
        # checkpoints of peftkit 0.1.0 call it "companion"
        hook_state = saved.pop("training_hook", saved.pop("companion", None))
        if self.training_hook is not None:
            self.training_hook.load_state_dict(hook_state)
        super().load_state_dict(saved)
        for name, master in self._copies():
            master.copy_(copies[name])

    def _copies(self) -> list[tuple[str, Tensor]]:
        copied = {id(master) for _, master in self.pairs}
        return [(name, m) for name, m in self.masters.items() if id(m) in copied]


def master_of(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself where it rests in fp32, else an fp32 copy of it."""
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=True)


def is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay leaves this parameter alone: biases, norms, other vectors.

    A column is one, too: IA3's and BOFT's scales are, and mean nothing where they are 1, not 0.
    """
    wide = sum(size > 1 for size in parameter.shape)
    return wide < 2 or any(word in name.lower() for word in NO_DECAY)


def rate_factors(
    optimizer: torch.optim.Optimizer, schedule: str, rising: int, steps: int
) -> list[Callable[[int], float]]:
    """Each group's `rate_factor`; 0 until the group's own start."""
    common = rate_factor(schedule, rising, steps)

    def factor(start: float) -> Callable[[int], float]:
        return lambda step: common(step) if step >= math.floor(start * steps) else 0.0

    return [factor(group["start"]) for group in optimizer.param_groups]


def rate_factor(schedule: str, rising: int, steps: int) -> Callable[[int], float]:
    """The learning rate at a step as a share of its highest, which it reaches after `rising`.

    `linear` and `cosine` fall to 0, `exponential` to 1 %; `step` is halved five times.
    """

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "constant": 1.0,
            "exponential": float(0.01**done),
            "step": 0.5 ** math.floor(6 * done),
        }[schedule]

    return factor


def warmup_steps(share: float, steps: int) -> int:
    """Steps in which the learning rate rises."""
    return math.floor(share * steps)
