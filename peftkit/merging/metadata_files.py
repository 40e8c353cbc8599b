"""Configuration, tokenizer files and model card of a merged checkpoint."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.errors import RunError
from peftkit.hub.source import TOKENIZER_PATTERNS, VOCABULARY_PATTERNS
from peftkit.merging.adapters import Adapter
from peftkit.merging.inference_settings import write_inference_settings
from peftkit.merging.model_classes import architectures_of, auto_class_of
from peftkit.merging.outputs import MergePlan
from peftkit.storage.atomic_files import write_json, write_text
from peftkit.storage.safetensors_files import StoredTensor

TOKENIZER_FILES = (*TOKENIZER_PATTERNS, *VOCABULARY_PATTERNS, "preprocessor_config.json")
"""The files of a tokenizer; none can hold a pickle."""
HEAD_SETTINGS = ("id2label", "label2id", "problem_type")
"""Settings of a head in a model's configuration, where they differ from transformers' defaults."""
TRAINED_SETTINGS = (
    *HEAD_SETTINGS,
    "pad_token_id",
    "architectures",
    "peftkit_fitted_state",
    "peftkit_tuned",
)
"""Settings taken from an artifact's configuration, not the base's."""


def base_config(folder: Path) -> dict[str, Any]:
    """The base's configuration.

    Raises `RunError` if it has none, or its weights are quantized.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}) - name a complete base with --base"
        ) from None
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown method")
        raise RunError(
            f"{folder}: has quantized weights ({method}), which a merge would have to quantize "
            "again - name the base in 16 or 32 bits with --base"
        )
    return config


def write_metadata_files(
    adapter: Adapter, base: Path, plan: MergePlan, folder: Path
) -> dict[str, Any]:
    """Write the configuration, the generation configuration and the tokenizer, for a run of peftkit
    as they were in training; returns the configuration."""
    config = merged_config(adapter, base, plan)
    write_json(folder / "config.json", config)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    own = [adapter.folder / n for n in ("tokenizer.json", "tokenizer_config.json", "spiece.model")]
    source = adapter.folder if any(path.is_file() for path in own) else base
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if adapter.task is not None:
        write_inference_settings(adapter.task, base, folder)
    return config


def merged_config(adapter: Adapter, base: Path, plan: MergePlan) -> dict[str, Any]:
    """The base's configuration with the merged model's class, labels and tying."""
    config = {**base_config(base), **plan.config}
    trained = adapter.folder / "config.json"
    if adapter.manifest and trained.is_file():
        settings = json.loads(trained.read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in HEAD_SETTINGS}
        config |= {k: settings[k] for k in TRAINED_SETTINGS if settings.get(k) is not None}
    elif adapter.trains_head:
        config |= labels_of(adapter, config)
    if adapter.trains_head:
        config["architectures"] = architectures_of(adapter, config)
    return config


def labels_of(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """Default labels, if the trained head has another number of them than the base's."""
    heads = [t for n, t in adapter.replaced.items() if gives_logits(n, t)]
    known = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if len(heads) != 1 or heads[0].shape[0] == len(known):
        return {}
    names = [f"LABEL_{index}" for index in range(heads[0].shape[0])]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def gives_logits(name: str, tensor: StoredTensor) -> bool:
    """Whether it is the weight of the layer that computes the logits."""
    ends = ("classifier.weight", "score.weight", "out_proj.weight", "qa_outputs.weight")
    return len(tensor.shape) == 2 and name.endswith(ends)


CARD = """---
{metadata}---

# {name}

{base} with {what} merged into its weights by peftkit: an ordinary checkpoint.

| | |
|---|---|
{rows}
```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
"""


def write_card(
    folder: Path, base: str, what: str, config: Mapping[str, Any], facts: Mapping[str, str]
) -> None:
    """Write the model card."""
    metadata = "library_name: transformers\ntags: [peftkit, merged]\n"
    if not Path(base).is_absolute() and base.count("/") == 1:  # a name on the hub
        metadata = f"base_model: {base}\nbase_model_relation: merge\n{metadata}"
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    text = CARD.format(
        metadata=metadata,
        name=folder.name.removesuffix(".partial"),
        base=base,
        what=what,
        rows=rows,
        auto_class=auto_class_of(config),
    )
    write_text(folder / "README.md", text)
