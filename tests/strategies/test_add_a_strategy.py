"""A strategy is added by one plug-in file, without a change to peftkit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.run_processes import ENVIRONMENT

FOURIER = '''
"""FourierFT: the difference is the inverse Fourier transform of a sparse spectrum."""

from typing import ClassVar, Literal

from peftkit.strategies import ComputedDelta, PeftStrategy, saved_heads, find_target_layers


class Fourier(PeftStrategy):
    """W + scaling * ifft2(F), F with few entries other than 0 (Gao et al. 2024), through PEFT."""

    kind: Literal["fourier"] = "fourier"
    n_frequency: int = 200
    """Trained entries of each spectrum."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt."""

    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2405.03003"
    peft_types: ClassVar[tuple[str, ...]] = ("FOURIERFT",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("fourierft_spectrum",)

    def configuration(self, model, task):
        from peft import FourierFTConfig

        return FourierFTConfig(
            task_type=task.peft_type_of(model),
            n_frequency=self.n_frequency,
            target_modules=find_target_layers(model, self.targets),
            modules_to_save=saved_heads(model, task),
        )

    @classmethod
    def weight_deltas(cls, layer):
        import torch

        config, size = layer.config, layer.weight_shape[0] * layer.weight_shape[1]

        def difference(spectrum):
            generator = torch.Generator().manual_seed(config["random_loc_seed"])
            dense = torch.zeros(size)
            dense[torch.randperm(size, generator=generator)[: len(spectrum)]] = spectrum
            return torch.fft.ifft2(dense.reshape(layer.weight_shape)).real * config["scaling"]

        tensors = (layer.tensors["fourierft_spectrum"],)
        return {"weight": (ComputedDelta(tensors, layer.weight_shape, difference),)}
'''
SCALE = '''
"""Scaled blocks: the output of every block is multiplied by a learned vector."""

from typing import ClassVar, Literal

from peftkit.strategies import ExportedModule, Strategy, add_module, module_tensors, train_head


def attach(model, settings, tensors):
    """Multiply a block's output by the saved vector."""
    import torch

    vector = torch.nn.Parameter(tensors.pop(f"{settings['block']}.output_scale.weight"))

    def scale(_, __, output):
        if isinstance(output, tuple):
            return (output[0] * vector, *output[1:])
        return output * vector

    model.get_submodule(settings["block"]).register_forward_hook(scale)


class Scale(Strategy):
    """x * s after every frozen block; s starts at 1."""

    kind: Literal["scale"] = "scale"
    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "a test"
    mergeable: ClassVar[bool] = False

    def adapt(self, model, task):
        import torch

        from peftkit.models.architectures import blocks_of

        model.requires_grad_(False)
        for _, block in blocks_of(model):
            layer = torch.nn.Module()
            size, like = model.config.hidden_size, next(block.parameters())
            layer.weight = torch.nn.Parameter(torch.ones(size, device=like.device))
            add_module(block, "output_scale", layer)

            def scale(module, _, output):
                states = output[0] if isinstance(output, tuple) else output
                states = states * module.output_scale.weight
                return (states, *output[1:]) if isinstance(output, tuple) else states

            block.register_forward_hook(scale)
        train_head(model, task)
        return model

    def exported_modules(self, model):
        names = [n for n, _ in model.named_modules() if n.endswith(".output_scale")]
        return [
            ExportedModule(
                "output_scale",
                attach,
                {"block": name.removesuffix(".output_scale")},
                module_tensors(model, name),
            )
            for name in names
        ]
'''
SETTINGS = (
    "model=tiny-bert",
    "data.rows=80",
    "training={steps: 6, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.05}",
)


def peftkit(folder: Path, *arguments: str) -> str:
    """What the command line prints, run in `folder`, where the plug-in is."""
    path = os.pathsep.join([str(folder), ENVIRONMENT.get("PYTHONPATH", "")])
    done = subprocess.run(
        [Path(sys.executable).with_name("peftkit"), *arguments],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder: Path, kind: str) -> Path:
    """The directory of a run of the plug-in's strategy."""
    plugin = f"plugins=[{kind}_plugin]"
    peftkit(folder, "train", "recipe=lora_tiny", plugin, f"strategy={kind}", *SETTINGS)
    (record,) = (folder / "runs").glob("*/record.json")
    assert json.loads(record.read_text())["proof"]["status"] == "proven"
    return record.parent


@pytest.mark.parametrize(("kind", "code"), [("fourier", FOURIER), ("scale", SCALE)])
def test_a_plugin_strategy_is_listed(kind: str, code: str, tmp_path: Path) -> None:
    (tmp_path / f"{kind}_plugin.py").write_text(code)
    assert kind in peftkit(tmp_path, "list", "strategies", "--plugin", f"{kind}_plugin")


def test_a_peft_method_in_one_file_trains_and_merges_with_proof(tmp_path: Path) -> None:
    (tmp_path / "fourier_plugin.py").write_text(FOURIER)
    run = train(tmp_path, "fourier")
    peftkit(tmp_path, "merge", str(run), "--to", "merged")
    merged = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert merged["kind"] == "FOURIERFT" and merged["changed"] > 2
    assert 0 < merged["proof"]["largest"] < merged["proof"]["tolerance"]
    assert merged["proof"]["before"] == merged["proof"]["after"]


def test_a_strategy_with_modules_of_its_own_in_one_file_exports_with_proof(tmp_path: Path) -> None:
    (tmp_path / "scale_plugin.py").write_text(SCALE)
    run = train(tmp_path, "scale")
    peftkit(tmp_path, "export", str(run), "--to", "exported")
    exported = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert not exported["mergeable"] and exported["attached"] == 4
    assert exported["proof"]["largest"] < exported["proof"]["tolerance"]
    assert "output_scale" in (tmp_path / "exported" / "README.md").read_text()
