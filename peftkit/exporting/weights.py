"""The base's weights in an exported folder: copied, with trained changes, or referenced."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peftkit.errors import RunError
from peftkit.exporting.trained import Trained
from peftkit.hub.source import Source, sha256_of
from peftkit.merging.adapters import Adapter, read_artifact
from peftkit.merging.dequantization import dequantized_weights, quantization_of
from peftkit.merging.merge import write_weights
from peftkit.merging.metadata_files import base_config
from peftkit.merging.outputs import MergePlan
from peftkit.merging.plan import plan_merge
from peftkit.merging.streaming import Written
from peftkit.records.run_dir import RunDir
from peftkit.storage.safetensors_files import open_checkpoint

Held = Literal["embed", "reference"]


@dataclass(frozen=True)
class Weights:
    """The plan for the base's weights."""

    adapter: Adapter
    """What changes the base's own tensors."""
    planned: MergePlan
    source: Source
    held: Held
    dequantized_from: str | None

    def write(self, folder: Path) -> Written:
        """Write the base's tensors to `folder`, if they are embedded."""
        if self.held == "reference":
            return Written()
        (folder / "base").mkdir()
        return write_weights(self.planned, folder / "base", name="exported base")

    def location(self) -> dict[str, Any]:
        """Where `load.py` finds the base's weights."""
        if self.held == "embed":
            return {"held": "embedded"}
        place = Path(self.source.location)
        kind, _, value = self.source.identity.partition(":")
        names = sorted(path.name for path in place.glob("model*.safetensors*"))
        return {
            "held": "referred",
            "name": self.source.used,
            "on_hub": self.source.origin in ("hub", "cache", "wheel"),
            "revision": value if kind == "revision" else None,
            "files": {name: sha256_of(place / name) for name in names},
        }


def weights_of(run: RunDir, source: Source, trained: Trained, held: Held) -> Weights:
    """The plan for the weights of `run`.

    Raises `RunError` if the base is damaged, or is to be referenced and was changed by training.
    """
    strategy = run.recipe.strategy
    adapter = base_part(run, trained)
    shards = open_checkpoint(Path(source.location))
    config = base_config(Path(source.location))
    before = dequantized_weights(adapter, Path(source.location))
    planned = plan_merge(adapter, shards, config, before)
    quantized = quantization_of(adapter)
    if held == "reference":
        why = None
        if quantized is not None:
            why = f"the run was trained on its {quantized.kind} weights"
        elif any(output.is_touched for output in planned.outputs):
            why = f"'strategy: {strategy.kind}' changed its own weights"
        if why is not None:
            raise RunError(f"{run.path}: cannot reference {source.used}: {why} - use --base embed")
    return Weights(adapter, planned, source, held, quantized.kind if quantized else None)


def base_part(run: RunDir, trained: Trained) -> Adapter:
    """The part of the artifact that changes the base, without what `load.py` attaches."""
    adapter = read_artifact(run.artifact, run)
    # PEFT wraps a model with a prompt once, others twice
    named = adapter.replaced.items()
    if not adapter.config:
        named = {t.name.removeprefix("base_model."): t for _, t in named}.items()
    return replace(adapter, replaced={n: t for n, t in named if n in trained.own})
