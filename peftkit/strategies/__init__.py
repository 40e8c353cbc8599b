"""Strategies: which weights move. Declaring a class here makes `strategy=<kind>` work."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftkit.registry import Component

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Strategy(Component):
    """Which weights of a model are trained, how they are attached, saved and folded back."""

    family = "strategy"
    package = "peftkit.strategies"

    default_lr: ClassVar[float]
    """The learning rate that `training.lr: auto` takes."""
    source: ClassVar[str]
    """The paper the strategy comes from."""
    trains_base: ClassVar[bool] = False
    """Whether all of the base moves (then it cannot be quantised, and keeps its dropout)."""
    foldable: ClassVar[bool] = True
    """Whether the result is an ordinary checkpoint after `merge`."""
    trained_file: ClassVar[str] = "trained.safetensors"
    """What the artefact's file of tensors is called."""

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """`model` with this strategy attached: exactly what should train has `requires_grad`.

        Raises `RecipeError` where the strategy's settings do not fit the model.
        """
        raise NotImplementedError

    def refuses(self, quantized: str | None) -> str | None:
        """Why the strategy cannot run on a base held in `quantized` ('4bit'); None if it can."""
        if quantized and self.trains_base:
            return (
                f"'strategy: {self.kind}' trains weights of the base, but 'quantize: {quantized}' "
                "freezes them - use strategy=lora or quantize=none"
            )
        return None

    def merge(self, model: "nn.Module") -> "PreTrainedModel":
        """`model` as an ordinary model of its class, what was trained folded into its weights.

        Raises `RunError` where the strategy's result is no model of that class.
        """
        from peftkit.errors import RunError

        if not self.foldable:
            raise RunError(
                f"'strategy: {self.kind}' cannot be merged: it adds layers that the model's class "
                "does not have - predict from the artefact as it is, or train strategy=lora"
            )
        return model  # type: ignore[return-value]

    def save(self, model: "nn.Module", folder: Path) -> None:
        """Write what was trained, and nothing else, to `folder` as safetensors."""
        from safetensors.torch import save_file

        trained = {n: p.detach().contiguous() for n, p in trainable(model).items()}
        save_file(trained, folder / self.trained_file, metadata={"format": "pt"})

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """A fresh base `model` with the artefact in `folder` in place, ready to predict."""
        from safetensors.torch import load_file

        adapted = self.adapt(model, task)
        restore(adapted, load_file(folder / self.trained_file))
        return adapted


def trainable(model: "nn.Module") -> dict[str, "nn.Parameter"]:
    """The parameters that train, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore(model: "nn.Module", tensors: Mapping[str, "Tensor"]) -> None:
    """Put saved `tensors` in the place of the trainable parameters of the same names.

    Raises `RunError` if the names are not the same.
    """
    import torch

    from peftkit.errors import RunError

    parameters = trainable(model)
    if parameters.keys() != tensors.keys():
        different = sorted(parameters.keys() ^ tensors.keys())
        raise RunError(
            f"the saved tensors are not those that train: {', '.join(different[:5])}"
            f"{' ...' if len(different) > 5 else ''} - they belong to another recipe or version"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
