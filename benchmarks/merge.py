"""What a merge takes: seconds and peak memory beside PEFT's own, and beside copying the files.

    python benchmarks/merge.py [--rounds 2] [--keep]

Makes a Llama-shaped checkpoint of 1.1 billion parameters (bf16, 5 shards, random weights) and a
third of it, each with a LoRA of rank 16 on all linear layers, in a temporary folder. Each merge is
a process of its own, without verification; those of a round follow one another, so that all meet
the same machine. `--keep` writes `measurements/merge.json`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peftkit.storage.safetensors_files import DTYPE_BYTES, format_header

TO = Path(__file__).parent / "measurements" / "merge.json"
WIDE, KEYS, INNER, TOKENS, SHARDS, RANK = 2048, 256, 5632, 32000, 5, 16
BLOCKS = {"1.1B": 22, "third": 5}
"""Blocks of TinyLlama's shape; five of them, with the embeddings, are a third of it."""
LINEAR = {
    "self_attn.q_proj": (WIDE, WIDE),
    "self_attn.k_proj": (KEYS, WIDE),
    "self_attn.v_proj": (KEYS, WIDE),
    "self_attn.o_proj": (WIDE, WIDE),
    "mlp.gate_proj": (INNER, WIDE),
    "mlp.up_proj": (INNER, WIDE),
    "mlp.down_proj": (WIDE, INNER),
}
MEASURED = """
import sys, runpy
from pathlib import Path
exec(sys.argv[1])
said = Path("/proc/self/status").read_text()
print(int(said.partition("VmHWM:")[2].split()[0]) * 1024)
"""
VARIANTS = {
    "peftkit": "import peftkit; peftkit.merge({adapter!r}, {to!r}, verify='off')",
    "peft": (
        "import torch\\n"
        "from peft import PeftModel\\n"
        "from transformers import AutoModelForCausalLM\\n"
        "model = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.bfloat16)\\n"
        "merged = PeftModel.from_pretrained(model, {adapter!r}).merge_and_unload()\\n"
        "merged.save_pretrained({to!r}, max_shard_size='500MB')"
    ),
    "copy": "import shutil; shutil.copytree({base!r}, {to!r})",
}


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a Llama's tensors."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, WIDE)}
    for block in range(blocks):
        name = f"model.layers.{block}"
        found |= {f"{name}.{layer}.weight": shape for layer, shape in LINEAR.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{name}.{norm}.weight": (WIDE,) for norm in norms}
    return {**found, "model.norm.weight": (WIDE,), "lm_head.weight": (TOKENS, WIDE)}


def make(folder: Path, blocks: int) -> int:
    """Write base and adapter; the base's number of weights."""
    import torch

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    tensors = shapes(blocks)
    total = sum(torch.Size(shape).numel() for shape in tensors.values())
    groups: list[list[str]] = [[] for _ in range(SHARDS)]
    seen = 0
    for name, shape in tensors.items():
        groups[min(SHARDS - 1, seen * SHARDS // total)].append(name)
        seen += torch.Size(shape).numel()
    places = {}
    for number, names in enumerate(groups, 1):
        shard = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        places |= dict.fromkeys(names, shard)
        with open(base / shard, "wb") as file:
            file.write(format_header([(name, "BF16", tensors[name]) for name in names]))
            for name in names:
                weight = torch.randn(tensors[name], dtype=torch.bfloat16) * 0.02
                file.write(memoryview(weight.reshape(-1).view(torch.uint8).numpy()))
    index = {"metadata": {"total_size": total * DTYPE_BYTES["BF16"]}, "weight_map": places}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text(json.dumps(config(blocks)))
    make_adapter(adapter, base, blocks)
    return total


def config(blocks: int) -> dict[str, Any]:
    """The base's configuration."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDE,
        "intermediate_size": INNER,
        "num_hidden_layers": blocks,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": TOKENS,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def make_adapter(folder: Path, base: Path, blocks: int) -> None:
    """Write a PEFT folder of a LoRA on all linear layers."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for block in range(blocks):
        for layer, (out, into) in LINEAR.items():
            name = f"base_model.model.model.layers.{block}.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, into) * 0.02
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    result = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [layer.rpartition(".")[2] for layer in LINEAR],
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(result))


def measure(variant: str, folder: Path) -> tuple[float, int]:
    """Seconds of a whole process, and its peak memory in bytes."""
    to = folder / "to"
    places = {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "to": str(to)}
    code = VARIANTS[variant].replace("\\n", "\n").format(**places)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, code], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    shutil.rmtree(to)
    return seconds, int(done.stdout.split()[-1])


def main() -> None:
    """Measure in rounds, and print what came of it."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--sizes", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    options.add_argument("--folder", type=Path, help="where to make the models")
    options.add_argument("--keep", action="store_true", help="write measurements/merge.json")
    given = options.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        weights = {size: make(Path(place) / size, BLOCKS[size]) for size in given.sizes}
        taken: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for _ in range(given.rounds):
            for size in given.sizes:
                for variant in given.only:
                    taken.setdefault((size, variant), []).append(
                        measure(variant, Path(place) / size)
                    )
    for (size, variant), figures in taken.items():
        found.setdefault(size, {"weights": weights[size]})[variant] = {
            "seconds": [round(seconds, 2) for seconds, _ in figures],
            "median_seconds": round(statistics.median(seconds for seconds, _ in figures), 2),
            "peak_mib": round(max(peak for _, peak in figures) / 2**20),
        }
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(found, indent=1))
    if given.keep:
        TO.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
