"""A cache of measurements made on this machine."""

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from peftkit.hub.source import cache_folder
from peftkit.storage.atomic_files import write_json

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that disable some of the processor's instructions."""


def find(what: str, **parts: Any) -> Any:
    """The cached measurement `what` under the same `parts` on this machine, or None."""
    try:
        return json.loads(_place(what, parts).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a damaged file is replaced
        return None


def keep(what: str, found: Any, **parts: Any) -> Any:
    """Cache the measurement `found`; returns the cached one, which another process may have stored
    first."""
    known = find(what, **parts)
    if known is not None:
        return known
    path = _place(what, parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _place(what: str, parts: dict[str, Any]) -> Path:
    whole = json.dumps([parts, machine()], sort_keys=True)
    key = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return cache_folder() / "measured" / f"{what}-{key}.json"


def machine() -> dict[str, Any]:
    """What speeds depend on: processor, instructions in use, libraries."""
    import torch

    return {
        "device": device_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }


def device_name() -> str:
    """The name of the accelerator or the processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo") as info:
            models = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    except OSError:  # not Linux
        models = []
    return f"cpu: {models[0] if models else platform.processor() or platform.machine()}"
