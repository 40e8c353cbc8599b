"""Companions: what stands beside the weights, so that transformers opens the folder by itself."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import RunError
from peftkit.hub.source import TOKENIZER_PATTERNS, VOCABULARY_PATTERNS
from peftkit.merging.adapters import Adapter
from peftkit.merging.as_trained import write_as_trained
from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.model_classes import auto_class_of, classes_of
from peftkit.storage.atomic_files import write_json, write_text

if TYPE_CHECKING:
    from peftkit.merging.outputs import Plan

TOKENIZER = (*TOKENIZER_PATTERNS, *VOCABULARY_PATTERNS, "preprocessor_config.json")
"""Files of a tokenizer; none can hold a pickle."""
OF_HEAD = ("id2label", "label2id", "problem_type")
"""What a configuration says of a head, where that is not what transformers takes by default."""
OF_TRAINED = (*OF_HEAD, "pad_token_id", "architectures", "peftkit_tuned")
"""What an artifact's configuration knows better than the base's."""


def base_config(folder: Path) -> dict[str, Any]:
    """The base's configuration.

    Raises `RunError` where it has none, or its weights are quantized.
    """
    path = folder / "config.json"
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}) - name a whole base with --base"
        ) from None
    held = said.get("quantization_config")
    if held:
        method = held.get("quant_method", "quantized")
        raise RunError(
            f"{folder}: holds its weights quantized ({method}), and merging into those would "
            "quantize again - name the base as it was before, in 16 or 32 bits, with --base"
        )
    return said


def write_companions(adapter: Adapter, base: Path, plan: "Plan", folder: Path) -> dict[str, Any]:
    """Write configuration, generation configuration and tokenizer, those of a run of ours as they
    were in training; the configuration."""
    config = merged_config(adapter, base, plan)
    write_json(folder / "config.json", config)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    own = [adapter.folder / n for n in ("tokenizer.json", "tokenizer_config.json", "spiece.model")]
    source = adapter.folder if any(path.is_file() for path in own) else base
    for pattern in TOKENIZER:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if adapter.task is not None:
        write_as_trained(adapter.task, base, folder)
    return config


def merged_config(adapter: Adapter, base: Path, plan: "Plan") -> dict[str, Any]:
    """The base's configuration with what is the merged model's own: class, labels, ties."""
    config = {**base_config(base), **plan.config}
    trained = adapter.folder / "config.json"
    if adapter.sealed and trained.is_file():
        said = json.loads(trained.read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in OF_HEAD}
        config |= {key: said[key] for key in OF_TRAINED if said.get(key) is not None}
    elif adapter.trains_head:
        config |= labels_of(adapter, config)
    if adapter.trains_head:
        config["architectures"] = classes_of(adapter, config)
    return config


def labels_of(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """Labels by number, where the trained head gives another number than the base's would."""
    heads = [t for n, t in adapter.replaced.items() if is_last_of_head(n, t)]
    known = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if len(heads) != 1 or heads[0].shape[0] == len(known):
        return {}
    names = [f"LABEL_{index}" for index in range(heads[0].shape[0])]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def is_last_of_head(name: str, tensor: Stored) -> bool:
    """Whether it is the weight that gives the labels' logits."""
    ends = ("classifier.weight", "score.weight", "out_proj.weight", "qa_outputs.weight")
    return len(tensor.shape) == 2 and name.endswith(ends)


CARD = """---
{metadata}---

# {name}

{base} with {what} folded into its weights by peftkit: an ordinary checkpoint.

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
    if not Path(base).is_absolute() and base.count("/") == 1:  # a name of the hub's
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
