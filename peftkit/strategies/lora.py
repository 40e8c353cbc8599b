"""LoRA: a low-rank update of each linear layer, in eight variants."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from peftkit.deltas.base import AdapterLayer, Deltas, WeightDelta
from peftkit.deltas.low_rank import (
    BiasDelta,
    ConvolutionDelta,
    DoraDelta,
    LowRankDelta,
    ResidualWeight,
)
from peftkit.deltas.structured import token_deltas
from peftkit.errors import RunError
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import (
    check_no_conv1d,
    check_rank,
    keeps_weights_transposed,
    quantization_error,
)
from peftkit.strategies.base import LRMultiplier, PeftStrategy, saved_heads, trainable

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task

VARIANTS = ("rslora", "dora", "lora_plus", "pissa", "olora", "loftq", "eva")
MOVES_WEIGHTS = ("pissa", "olora")
"""The variants that move a part of the base's weights into the adapter."""
VARIANT_SETTINGS = {"loraplus_lr_ratio": "lora_plus", "batches": "eva"}
"""Settings that only one variant has."""
UNMERGEABLE = {
    "alora_invocation_tokens": "it applies to some tokens only",
    "arrow_config": "it selects adapters for each token",
    "use_qalora": "it pools the layer's input",
    "use_bdlora": "its matrices are blocks on several devices",
    "kasa_config": "it changes the base's singular values",
    "layer_replication": "it runs layers of the base several times",
    "target_parameters": "it adapts parameters that are not a layer's weight",
    "megatron_config": "its layers are Megatron's",
}
"""Settings of PEFT's LoRA whose result is no low-rank difference, and why."""
CHANGES_BASE = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Initializations that change the base at random, or by data that an adapter does not hold."""
LOOKS = 50
"""How often eva may look at its batches before the directions must be found."""


class Lora(PeftStrategy):
    """W + alpha/r * B A beside frozen weights W (Hu et al. 2021, equation 3), through PEFT."""

    kind: Literal["lora"] = "lora"
    r: PositiveInt = 8
    """Rank of the update."""
    alpha: PositiveFloat = 16
    """Scale: the update is multiplied by alpha / r (rslora: alpha / sqrt(r))."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the inputs of A."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""
    variant: Literal["lora", "rslora", "dora", "lora_plus", "pissa", "olora", "loftq", "eva"] = (
        "lora"
    )
    """rslora: scaled by the root of r (arXiv:2312.03732); dora: a magnitude for each output
    (arXiv:2402.09353); lora_plus: B learns faster than A (arXiv:2402.12354); pissa: starts at W's
    largest singular values (arXiv:2404.02948); olora: at W's QR decomposition (arXiv:2406.01775);
    loftq: at the 4-bit quantization error of W (arXiv:2310.08659); eva: at the principal
    components of the layer's inputs (arXiv:2410.07170)."""
    loraplus_lr_ratio: PositiveFloat = 16
    """lora_plus: how many times as fast as A B learns."""
    batches: PositiveInt = 16
    """eva: batches of 16 examples of the train split to look at, at most."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {v: {"variant": v} for v in VARIANTS}
    source: ClassVar[str] = "arXiv:2106.09685"
    peft_types: ClassVar[tuple[str, ...]] = ("LORA",)
    layer_tensors: ClassVar[tuple[str, ...]] = (
        "lora_A",
        "lora_B",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "trainable_tokens_delta",
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_variant(self) -> Self:
        for name, variant in VARIANT_SETTINGS.items():
            value = getattr(self, name)
            if variant != self.variant and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"'{name}' (got {value}) is a setting of variant={variant}, not of "
                    f"variant={self.variant} - drop it or use strategy={variant}"
                )
        return self

    @model_serializer(mode="wrap")
    def _variant_settings(self, say: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what has no effect is not part of a run's name
        settings: dict[str, Any] = say(self)
        others = [name for name, variant in VARIANT_SETTINGS.items() if variant != self.variant]
        return {name: value for name, value in settings.items() if name not in others}

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """5e-4; less where it is multiplied for B."""
        return 1e-4 if self.variant == "lora_plus" else 5e-4

    @property
    def saves_start(self) -> bool:  # type: ignore[override]
        """Whether the start was taken from the base's weights: it is subtracted in the artifact."""
        return self.variant in MOVES_WEIGHTS

    def check_quantization(self, quantized: str | None) -> str | None:
        """Two variants need whole weights, one needs 4-bit ones."""
        if self.variant == "loftq" and quantized != "4bit":
            return (
                "'strategy.variant: loftq' makes up for what 4 bits lose, and 'quantize: "
                f"{quantized or 'none'}' has none - use quantize=4bit or strategy=lora"
            )
        if self.variant in MOVES_WEIGHTS and quantized:
            return (
                f"'strategy.variant: {self.variant}' takes its start out of the base's weights, "
                f"but 'quantize: {quantized}' would round what is left of them anew - use "
                f"{'strategy=loftq, ' if quantized == '4bit' else ''}strategy=lora or quantize=none"
            )
        return None

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """The deltas of a linear layer, an embedding or a convolution."""
        embedding = "lora_embedding_A" in layer.tensors
        a, b = (layer.tensors.get(f"lora_{'embedding_' * embedding}{half}") for half in "AB")
        if a is None or b is None:
            return {"weight": token_deltas(layer)}
        r, alpha = layer.setting("r", "rank_pattern"), layer.setting("lora_alpha", "alpha_pattern")
        scale = alpha / (r**0.5 if layer.config.get("use_rslora") else r)
        transposed, weight = layer.transposed or embedding, list[WeightDelta](token_deltas(layer))
        initialization = str(layer.config.get("init_lora_weights")).lower()
        if initialization in MOVES_WEIGHTS and not embedding:
            weight.append(ResidualWeight(initialization, int(r), scale, transposed))
        low_rank = LowRankDelta(a, b, scale, transposed)
        magnitude = layer.tensors.get("lora_magnitude_vector")
        if len(a.shape) > 2:  # and PEFT's DoRA of convolutions is left unused: an error
            weight.append(ConvolutionDelta(a, b, scale))
        else:
            weight.append(low_rank if magnitude is None else DoraDelta(low_rank, magnitude))
        bias = layer.tensors.get("lora_B.bias")
        return {"weight": tuple(weight), "bias": (BiasDelta(bias, scale),) if bias else ()}

    @classmethod
    def check_merge(cls, config: Mapping[str, Any]) -> str | None:
        """Settings of PEFT's whose result is no low-rank difference to the base."""
        for name, why in UNMERGEABLE.items():
            if config.get(name):
                return f"it was trained with {name}={config[name]!r}: {why}"
        initialization = config.get("init_lora_weights")
        if isinstance(initialization, str) and initialization.lower().startswith(CHANGES_BASE):
            return (
                f"its initialization {initialization!r} changed the base in a way that the folder "
                "does not record; saved with PEFT's path_initial_model_for_weight_conversion it is "
                "an ordinary LoRA"
            )
        return None

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """DoRA, and initializations from the base's weights."""
        if config.get("use_dora"):
            return "DoRA rescales the weights of each output, which cannot be added"
        if config.get("trainable_token_indices"):
            return "it replaces rows of the embeddings, which cannot be added"
        initialization = str(config.get("init_lora_weights")).lower()
        if initialization in MOVES_WEIGHTS:
            return (
                f"{initialization} moved a part of the base into the adapter, and two such parts "
                "overlap; saved with path_initial_model_for_weight_conversion it is an ordinary "
                "LoRA"
            )
        return None

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """LoRA on the targets, in the chosen variant."""
        from peft import LoraConfig

        layers = find_target_layers(model, self.targets)
        check_rank(model, layers, self.r)
        if self.variant == "olora":
            check_no_conv1d(model, layers, "OLoRA")
        takes = self.variant in MOVES_WEIGHTS and model.device.type != "meta"
        start: Any = self.variant if takes else True
        return LoraConfig(
            task_type=task.peft_type_of(model),
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            lora_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            init_lora_weights=start,
            fan_in_fan_out=keeps_weights_transposed(model, layers),
        )

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel`, initialized as the variant says."""
        adapted = super().adapt(model, task)
        if model.device.type == "meta":
            return adapted
        if self.variant in MOVES_WEIGHTS:
            remember_start(adapted)
        if self.variant == "loftq":
            make_up_for_rounding(adapted, Path(str(model.name_or_path)))
        return adapted

    def prepare(self, model: "nn.Module", batches: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """eva: A starts at the main directions of each layer's inputs, B at 0."""
        if self.variant == "eva":
            start_at_directions(model, self.r, list(islice(batches(), self.batches)))

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """lora_plus: B, also an embedding's, learns `loraplus_lr_ratio` times as fast."""
        if self.variant != "lora_plus":
            return {}
        halves = (".lora_B.", ".lora_embedding_B.")
        return {
            n: LRMultiplier(self.loraplus_lr_ratio)
            for n in trainable(model)
            if any(h in n for h in halves)
        }

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder of an ordinary LoRA for the original base."""
        super().save(model, folder)
        if self.variant in MOVES_WEIGHTS:
            subtract_start(model, folder)


def lora_layers(model: "nn.Module") -> dict[str, Any]:
    """The layers that carry a LoRA, by name."""
    return {n: m for n, m in model.named_modules() if "default" in getattr(m, "lora_A", ())}


def remember_start(model: Any) -> None:
    """Keep A and B as they are now on the model, under the names that PEFT saves them by."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model).items()
    model.lora_start = {n: t.detach().clone() for n, t in tensors if ".lora_" in n}


def subtract_start(model: Any, folder: Path) -> None:
    """Turn the folder's adapter, B A on W - B0 A0, into [B -B0] [A; A0] on W: twice the rank.

    PEFT 0.21's own conversion (`path_initial_model_for_weight_conversion`) leaves out the head.
    """
    import torch
    from peft import PeftConfig
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, start in model.lora_start.items():
        first = ".lora_A." in name
        parts = [tensors[name], start.cpu() if first else -start.cpu()]
        tensors[name] = torch.cat(parts, dim=0 if first else 1).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.init_lora_weights = True
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.save_pretrained(str(folder))


def make_up_for_rounding(model: "nn.Module", folder: Path) -> None:
    """Start each A and B at the largest singular values of what its 4-bit weight has lost.

    LoftQ's algorithm 1 with T = 1. PEFT 0.21's own (`replace_lora_weights_loftq`) runs on GPUs
    only, and forgets that B A is multiplied by alpha / r.
    """
    import torch

    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            if type(layer.get_base_layer()).__name__ != "Linear4bit":  # T5 keeps some whole
                continue
            stored = name.removeprefix("base_model.model.")
            lost = (
                quantization_error(layer.get_base_layer(), stored, folder)
                / layer.scaling["default"]
            )
            left, values, right = torch.linalg.svd(lost, full_matrices=False)
            root = values[: layer.r["default"]].sqrt()
            layer.lora_A["default"].weight.copy_(root[:, None] * right[: len(root)])
            layer.lora_B["default"].weight.copy_(left[:, : len(root)] * root)


def start_at_directions(model: Any, r: int, batches: list[dict[str, Any]]) -> None:
    """Start each A at the `r` main directions of what enters its layer in `batches` (EVA)."""
    import warnings

    import torch
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    enough = [batch for batch in batches if tokens_in(batch) >= r]
    if not enough:
        raise RunError(
            f"strategy.variant=eva finds {r} directions only in batches of {r} tokens or more, and "
            "the train split has none - use a smaller strategy.r or strategy=lora"
        )
    looks = iter(range(LOOKS * len(enough)))
    modes = {module: module.training for module in model.modules()}

    def look(module: Any, batch: dict[str, Any]) -> Any:
        if next(looks, None) is None:
            raise RunError(
                f"strategy.variant=eva: the main directions of what enters the layers are still "
                f"changing after {LOOKS} looks at {len(enough)} batches - use more "
                "strategy.batches, a smaller strategy.r or strategy=lora"
            )
        return module(**batch)

    # as many directions a layer as its rank, so that no rank moves from one to another
    config = LoraConfig(r=r, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "input of type", UserWarning)  # lengths are no tensors
        found = get_eva_state_dict(
            model,
            enough,
            config,
            forward_fn=look,
            prepare_layer_inputs_fn=entering,
            gather_distributed_inputs=False,  # each rank has all of them
            show_progress_bar=False,
        )
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.lora_A["default"].weight.copy_(found[name])
    for module, mode in modes.items():  # PEFT gives all of them the model's own
        module.training = mode


def entering(layer_input: Any, tokens: Any, _: str) -> Any:
    """What enters a layer at the `tokens` (n, 2) that are no padding; all of what enters one that
    sees no rows of the batch, as DeBERTa's projections of relative positions."""
    states = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    rows, columns = tokens.T.unbind()
    if int(rows.max()) >= len(states):
        return states.flatten(0, -2)
    return states[rows, columns]


def tokens_in(batch: Mapping[str, Any]) -> int:
    """How many tokens of a batch are no padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())
