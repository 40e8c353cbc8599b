"""Proof of training: what should train moved, what is frozen did not."""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from peftkit.records.record import Proof
from peftkit.strategies.base import trainable

if TYPE_CHECKING:
    from typing_extensions import Buffer

ZERO_GRADIENT = {
    r"(^|\.)(key|k_lin|k_proj|k)\.bias$": (
        "a key bias adds the same to all of a query's scores, and softmax takes that away"
    ),
    r"\.lora_E\.": (
        "AdaLoRA may prune all directions of a layer, back to the zeros that they start as"
    ),
}
"""Parameters that may end as they began, most as their gradient is zero: by pattern, and why."""
STEPS_TO_MOVE = 3
"""Updates after the warm-up: an adapter's zero-initialized half blocks the other half at first."""


class IntegrityCheck:
    """Knows what every tensor was before training."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: fingerprint(p.float()) for name, p in trainable(model).items()}
        self.frozen = {name: fingerprint(t) for name, t in frozen(model).items()}

    def verify(self, masters: Mapping[str, Tensor], warmup: int, state: Any) -> Proof:
        """What moved, judged on the fp32 masters (a right bf16 step can be below one ulp)."""
        still = [n for n, p in masters.items() if fingerprint(p.float()) == self.trained[n]]
        excused = {name: reason for name in still if (reason := excuse(name))}
        unmoved = [name for name in still if name not in excused]
        now = frozen(self.model)
        changed = [name for name, was in self.frozen.items() if fingerprint(now[name]) != was]
        short = state.global_step < warmup + STEPS_TO_MOVE
        failed = bool(changed) or bool(unmoved and not short)
        return Proof(
            status="failed" if failed else "too short" if short else "proven",
            moved=len(self.trained) - len(still),
            unmoved=unmoved,
            excused=excused,
            frozen_intact=not changed,
            changed=changed,
            reload_difference=None,
        )


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that must not change: parameters that do not train, and buffers."""
    tensors: dict[str, Tensor] = dict(model.named_buffers())
    tensors.update({n: p for n, p in model.named_parameters() if not p.requires_grad})
    return tensors


def fingerprint(tensor: Tensor) -> bytes:
    """A hash of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(cast("Buffer", flat.numpy()), digest_size=16).digest()


def excuse(name: str) -> str | None:
    """Why a trained tensor of this name may stand still, if it may."""
    return next((why for pattern, why in ZERO_GRADIENT.items() if re.search(pattern, name)), None)


def reason_of(proof: Proof) -> str | None:
    """Why the proof failed, naming the tensors; None if it did not."""
    if proof.changed:
        return f"frozen tensors changed: {', '.join(proof.changed[:5])}"
    if proof.status == "failed" and proof.unmoved:
        return f"trained tensors never moved: {', '.join(proof.unmoved[:5])}"
    if proof.status == "failed":
        return f"the reloaded artifact's outputs differ by {proof.reload_difference:.3g}"
    return None
