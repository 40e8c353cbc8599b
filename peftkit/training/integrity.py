"""Integrity checks of training: every trained tensor has changed, and no frozen one has."""

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

MAY_STAY_UNCHANGED = {
    r"(^|\.)(key|k_lin|k_proj|k)\.bias$": (
        "a key bias adds the same value to all scores of a query, which softmax ignores"
    ),
    r"\.lora_E\.": ("AdaLoRA may prune all directions of a layer back to their initial zeros"),
}
"""Reasons by pattern of parameter name: for most of them the gradient is zero."""
STEPS_TO_MOVE = 3
"""Updates after the warm-up: at first the zero-initialized half of an adapter blocks the gradient
of the other half."""


class IntegrityCheck:
    """Fingerprints of every tensor before training, compared with those after it by `verify`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: fingerprint(p.float()) for name, p in trainable(model).items()}
        self.frozen = {name: fingerprint(t) for name, t in frozen(model).items()}

    def verify(self, master_weights: Mapping[str, Tensor], warmup: int, state: Any) -> Proof:
        """The `Proof` of what changed, by the fp32 master weights (a correct bf16 update can be
        below one ulp).

        `warmup` is the number of warm-up steps, and `state` the `TrainerState`.
        """
        unchanged = [
            n for n, p in master_weights.items() if fingerprint(p.float()) == self.trained[n]
        ]
        excused = {name: reason for name in unchanged if (reason := reason_unchanged(name))}
        unmoved = [name for name in unchanged if name not in excused]
        now = frozen(self.model)
        changed = [name for name, was in self.frozen.items() if fingerprint(now[name]) != was]
        short = state.global_step < warmup + STEPS_TO_MOVE
        failed = bool(changed) or bool(unmoved and not short)
        return Proof(
            status="failed" if failed else "too short" if short else "proven",
            moved=len(self.trained) - len(unchanged),
            unmoved=unmoved,
            excused=excused,
            frozen_intact=not changed,
            changed=changed,
            reload_difference=None,
        )


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that must not change, by name: frozen parameters and buffers."""
    tensors: dict[str, Tensor] = dict(model.named_buffers())
    tensors.update({n: p for n, p in model.named_parameters() if not p.requires_grad})
    return tensors


def fingerprint(tensor: Tensor) -> bytes:
    """A 16-byte BLAKE2b hash of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(cast("Buffer", flat.numpy()), digest_size=16).digest()


def reason_unchanged(name: str) -> str | None:
    """Why a trained tensor of this name may stay unchanged, or None if it may not."""
    return next(
        (why for pattern, why in MAY_STAY_UNCHANGED.items() if re.search(pattern, name)), None
    )


def reason_of(proof: Proof) -> str | None:
    """Why the proof failed, with the names of the tensors; None if it did not."""
    if proof.changed:
        return f"frozen tensors changed: {', '.join(proof.changed[:5])}"
    if proof.status == "failed" and proof.unmoved:
        return f"trained tensors did not change: {', '.join(proof.unmoved[:5])}"
    if proof.status == "failed":
        return f"the reloaded artifact's outputs differ by {proof.reload_difference:.3g}"
    return None
