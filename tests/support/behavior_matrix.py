"""The behavior matrix's cells: strategies x tiny models x ways to hold the base."""

import os
from dataclasses import dataclass
from functools import cache

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import TINY
from peftkit.loading.model import meta_model
from peftkit.strategies.base import Strategy
from support.toy_models import NAMES, toy

WAYS = {
    "full": "full",
    "full-decay": "{kind: full, layer_decay: 0.5}",
    "gradual": "gradual",
    "linear_probe": "linear_probe",
    "last-block": "{kind: frozen, last: 1}",
    "first-block": "{kind: frozen, last: 0, first: 1}",
    "bitfit": "bitfit",
    "layernorm": "layernorm",
    "lora": "{kind: lora, r: 4}",
    "rslora": "{kind: rslora, r: 4}",
    "dora": "{kind: dora, r: 4}",
    "lora_plus": "{kind: lora_plus, r: 4}",
    "pissa": "{kind: pissa, r: 4}",
    "olora": "{kind: olora, r: 4}",
    "loftq": "{kind: loftq, r: 4}",
    "eva": "{kind: eva, r: 4}",
    "adalora": "{kind: adalora, target_r: 2, init_r: 4}",
    "vera": "{kind: vera, r: 16}",
    "oft": "oft",
    "boft": "boft",
    "loha": "{kind: loha, r: 4}",
    "lokr": "{kind: lokr, r: 4}",
    "ia3": "ia3",
    "peft": "{kind: peft, method: fourierft}",
    # four units of a ReLU can all be off at the one token that is read
    "pfeiffer": "{kind: adapter, activation: gelu}",
    "houlsby": "{kind: adapter, variant: houlsby}",
    "parallel": "{kind: adapter, variant: parallel}",
    "adapter_drop": "{kind: adapter, drop: 1, activation: gelu}",
    "compacter": "compacter",
    "prompt": "{kind: prompt, num_virtual_tokens: 4}",
    "p_tuning": "{kind: p_tuning, num_virtual_tokens: 4}",
    "prefix": "{kind: prefix, num_virtual_tokens: 4}",
    "prefix-network": "{kind: prefix, num_virtual_tokens: 4, prefix_projection: true}",
    "mam": "mam",
    "adapter+layernorm": "[{kind: adapter, activation: gelu}, layernorm]",
    "lora+bitfit": "[{kind: lora, r: 4}, bitfit]",
    "lora+embeddings": "[{kind: lora, r: 4}, {kind: frozen, last: 0, embeddings: true}]",
}
"""Ways to train by name; every registered kind is among them."""
NEW = set(Strategy.kinds()) - {"combination", "frozen", "adapter", *WAYS}
WAYS |= {kind: kind for kind in sorted(NEW)}  # a new strategy is held to all of this too

MODELS = ("tiny-bert", "tiny-llama", "tiny-t5")
HELD = ("none", "8bit", "4bit")
EVERYWHERE = ("full", "lora", "pfeiffer", "prefix")
CLASSIFIERS = tuple(name for name in TINY if name != "tiny-marian")
WHOLE = os.environ.get("PEFTKIT_MATRIX") == "whole"


@dataclass(frozen=True)
class Cell:
    """One way to train on one model, held in one way."""

    way: str
    model: str
    quantize: str = "none"
    precision: str = "fp32"

    def __str__(self) -> str:
        return "-".join([self.way, self.model, self.quantize, self.precision])

    @property
    def recipe(self) -> Recipe:
        """Raises `RecipeError` where the parts refuse each other."""
        return toy(
            self.model,
            f"strategy={WAYS[self.way]}",
            f"quantize={self.quantize}",
            f"training.precision={self.precision}",
        )


@cache
def refusal(cell: Cell) -> str | None:
    """Why the cell cannot be, in the words a user gets before anything loads; None if it can."""
    try:
        meta_model(cell.recipe, find_model(cell.model).location, NAMES)
    except RecipeError as error:
        return str(error)
    return None


def cells() -> list[Cell]:
    """Every cell of this test run: CI's part, or the whole product (PEFTKIT_MATRIX=whole)."""
    models = CLASSIFIERS if WHOLE else MODELS
    found = [Cell(way, model, held) for way in WAYS for model in models for held in HELD]
    found += [Cell(way, model) for way in EVERYWHERE for model in CLASSIFIERS]
    found += [Cell("eva", "tiny-deberta-v3")]  # some of its layers see no rows of the batch
    found += [Cell(way, "tiny-bert", held, "bf16") for way in WAYS for held in HELD[::2]]
    return list(dict.fromkeys(found))


CELLS = cells()

QUANTIZED = ("8bit", "4bit")
REFUSED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("full", "full-decay", "gradual", "last-block", "first-block", "lora+embeddings"), QUANTIZED
    ),
    "pissa": QUANTIZED,
    "olora": (*QUANTIZED, "gpt2"),
    **dict.fromkeys(("loha", "lokr"), ("4bit", "gpt2")),
    **dict.fromkeys(("oft", "boft"), ("gpt2",)),  # PEFT's know no Conv1D
    "adapter_drop": ("albert",),  # one block, run several times
    "loftq": ("none", "8bit"),
    **dict.fromkeys(
        ("bitfit", "lora+bitfit"),
        ("llama", "mistral", "qwen3", "gemma3", "t5", "modernbert"),  # without biases
    ),
    **dict.fromkeys(("prompt", "p_tuning"), ("t5", "bart")),
    **dict.fromkeys(("prefix", "prefix-network", "mam"), ("deberta-v3", "mpnet")),
}
"""What cannot be: ways and the models or holdings that they do not go with."""


def is_refused(cell: Cell) -> bool:
    """Whether the cell is among those that cannot be."""
    against = REFUSED.get(cell.way, ())
    return cell.quantize in against or cell.model.removeprefix("tiny-") in against
