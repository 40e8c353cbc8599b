"""OFT: the inputs of a layer are rotated, block by block, by learned orthogonal matrices."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import BlockRotation
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import check_block_size, check_no_conv1d
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Oft(PeftStrategy):
    """W R with R orthogonal and block-diagonal (Qiu et al. 2023), through PEFT."""

    kind: Literal["oft"] = "oft"
    block_size: PositiveInt = Field(default=32, ge=2)
    """Inputs that are rotated together; must divide every layer's input size."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the blocks that are not rotated in a step."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""
    shared: bool = False
    """Whether all blocks of a layer share one rotation."""
    limit: PositiveFloat | None = None
    """Constrained OFT: how far a rotation may go."""
    terms: PositiveInt | None = 5
    """Terms of the Neumann series for an inverse; null: the exact inverse, which is slower."""

    default_lr: ClassVar[float] = 1e-3
    source: ClassVar[str] = "arXiv:2306.07280"
    peft_types: ClassVar[tuple[str, ...]] = ("OFT",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("oft_R",)

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """Of linear layers; the size of the blocks follows from their number of elements."""
        weight, config = layer.tensors.get("oft_R"), layer.config
        if weight is None or len(weight.shape) != 2:
            return {}
        size = round((1 + (1 + 8 * weight.shape[1]) ** 0.5) / 2)
        series = config.get("use_cayley_neumann")
        terms = int(config["num_cayley_neumann_terms"]) if series else None
        limit = float(config["eps"]) if config.get("coft") else None
        shared = bool(config.get("block_share"))
        return {"weight": (BlockRotation(weight, size, shared, terms, limit),)}

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """Rotations."""
        return "OFT rotates the weights, which cannot be added"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """OFT on the targets."""
        from peft import OFTConfig

        layers = find_target_layers(model, self.targets)
        check_no_conv1d(model, layers, "OFT")
        check_block_size(model, layers, self.block_size)
        return OFTConfig(
            task_type=task.peft_type_of(model),
            oft_block_size=self.block_size,
            module_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
            block_share=self.shared,
            coft=self.limit is not None,
            eps=self.limit or 0.0,
            use_cayley_neumann=self.terms is not None,
            num_cayley_neumann_terms=self.terms or 1,
        )
