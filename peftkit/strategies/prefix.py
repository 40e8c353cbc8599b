"""Prefix tuning: learned keys and values before those of every attention."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from peftkit.errors import Fault
from peftkit.models.layouts import ARCHITECTURES
from peftkit.strategies.base import ExportedModule, Strategy, restore, train_head, trainable

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from peftkit.tasks.base import Task


class Prefix(Strategy):
    """Attention to [P_k; keys] and [P_v; values] in frozen blocks (Li and Liang 2021, section 4).

    The prefix takes no position of the text's: tokens stand where they were pretrained to stand.
    """

    kind: Literal["prefix"] = "prefix"
    num_virtual_tokens: PositiveInt = 20
    """Keys and values before those of each attention."""
    prefix_projection: bool = False
    """Train a network that gives the prefix, not the prefix; the artifact holds what it gave."""
    encoder_hidden_size: PositiveInt | None = None
    """The network's width, where there is one; null: as wide as the model."""

    packs: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv:2101.00190"

    @model_validator(mode="after")
    def _a_width_needs_a_network(self) -> Self:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(
                f"encoder_hidden_size={self.encoder_hidden_size}: there is no network - "
                "set prefix_projection: true, or leave encoder_hidden_size out"
            )
        return self

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """A network learns at a network's rate, keys and values need a larger one."""
        return 1e-3 if self.prefix_projection else 1e-2

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """Models whose attention is unknown, or cannot be replaced."""
        model_type = config.model_type
        if model_type not in ARCHITECTURES:
            what = f"where {model_type} attends is not known, only of {', '.join(ARCHITECTURES)} - "
            return [Fault("strategy", f"{what}use strategy=lora, or a model of these")]
        if not task.auto_class(config)._model_mapping[type(config)]._can_set_attn_implementation():
            what = f"transformers' {model_type} computes attention in a way that takes no prefix - "
            return [Fault("strategy", f"{what}use strategy=prompt or strategy=lora")]
        return []

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with a prefix in every attention, and a trainable head."""
        from peftkit.models.prefix_attention import attach_prefixes

        model.requires_grad_(False)
        attach_prefixes(
            model, self.num_virtual_tokens, self.encoder_hidden_size, self.prefix_projection
        )
        train_head(model, task)
        return model

    def save(self, model: "nn.Module", folder: Path) -> None:
        """Keys, values and the head; not the network that may have given them."""
        from safetensors.torch import save_file

        from peftkit.models.prefix_attention import states_of

        head = {n: p.detach() for n, p in trainable(model).items() if ".prefix." not in n}
        tensors = {
            name: tensor.contiguous() for name, tensor in {**head, **states_of(model)}.items()
        }
        save_file(tensors, folder / self.trained_file, metadata={"format": "pt"})

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """A fresh base `model` with the saved keys, values and head in place."""
        from safetensors.torch import load_file

        plain = Prefix(num_virtual_tokens=self.num_virtual_tokens)
        adapted = plain.adapt(model, task)
        restore(adapted, load_file(folder / self.trained_file))
        return adapted

    def exported_modules(self, model: "nn.Module") -> list[ExportedModule]:
        """The prefix of every attention."""
        from peftkit.models.exported import prefix
        from peftkit.models.prefix_attention import states_of

        return [
            ExportedModule(
                "prefix", prefix, {"attention": name.removesuffix(".prefix.states")}, {name: states}
            )
            for name, states in states_of(model).items()
        ]
