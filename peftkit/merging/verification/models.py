"""Models: the base with its adapter, and what it was merged into, as transformers runs them."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from peftkit.errors import RunError
from peftkit.loading.model import quiet_transformers
from peftkit.loading.token_selection import pass_on_inputs
from peftkit.merging.adapters import Adapter, strategy_of
from peftkit.merging.dequantization import (
    quantization_of,
    quantize_and_dequantize,
    training_precision,
)
from peftkit.merging.metadata_files import labels_of
from peftkit.merging.model_classes import auto_class_of
from peftkit.merging.training_models import quantized_layers, training_config
from peftkit.models.architectures import checkpoint_key_mapping, unwrap_model
from peftkit.strategies.base import quiet_peft


def adapted(adapter: Adapter, base: Path, merged: Path, onto: str, dtype: torch.dtype) -> nn.Module:
    """The base with the adapter on it; `onto` 'trained': as the base was held in training."""
    with quiet_transformers():
        if adapter.manifest:
            task = adapter.task
            assert task is not None
            config = training_config(adapter, base)
            # a head of the base's own is another size where the run's is new, and goes
            anew = {"ignore_mismatched_sizes": task.trains_head}
            model = opened(task.auto_class(config), base, dtype, config, **anew)
            if onto == "trained":
                dequantize(model, adapter, base)
            # weights stored in the artifact are read as they are; the base is whole here
            loaded = strategy_of(adapter).load(model, adapter.folder, task).eval()
            pass_on_inputs(loaded, 0)
            return loaded
        return with_peft(adapter, base, merged, dtype)


def dequantize(model: Any, adapter: Adapter, base: Path) -> None:
    """Give each layer that was quantized in training the weight that it stood for."""
    quantize = quantization_of(adapter)
    if quantize is None:
        return
    precision = training_precision(adapter)
    for name, transposed in quantized_layers(adapter, base).items():
        weight = model.get_submodule(name).weight
        whole = weight.data.float().T.contiguous() if transposed else weight.data.float()
        found = quantize_and_dequantize(whole, quantize, precision)
        weight.data = (found.T.contiguous() if transposed else found).to(weight.dtype)


def with_peft(adapter: Adapter, base: Path, merged: Path, dtype: torch.dtype) -> nn.Module:
    """A plain PEFT folder on its base, by PEFT."""
    from peft import PeftModel

    config = AutoConfig.from_pretrained(merged)
    tokens = getattr(config, "vocab_size", None)
    base_config = AutoConfig.from_pretrained(base)
    resized = tokens != getattr(base_config, "vocab_size", None)
    config.tie_word_embeddings = base_config.tie_word_embeddings
    if resized:
        config.vocab_size = base_config.vocab_size
    config.use_cache = False
    for name, value in labels_of(adapter, config.to_dict()).items():
        setattr(config, name, value)  # of several adapters, the merged one has one's labels only
    model = opened(class_of(merged), base, dtype, config)
    if resized:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(
            model, str(adapter.folder), autocast_adapter_dtype=False
        ).eval()


def class_of(folder: Path) -> Any:
    """The class that opens a checkpoint: one of transformers' Auto classes."""
    config = AutoConfig.from_pretrained(folder)
    return getattr(transformers, auto_class_of({"architectures": config.architectures}))


def opened(loader: Any, folder: Path, dtype: torch.dtype, config: Any, **given: Any) -> Any:
    """A base in `dtype`, ready to predict."""
    model: PreTrainedModel = loader.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        key_mapping=checkpoint_key_mapping(loader, config),
        **given,
    )
    return model.eval()


def whole(loader: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The merged model, as anybody opens it.

    Raises `RunError` where the folder lacks tensors of its class.
    """
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        config.use_cache = False
        model, loading_info = loader.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    absent = [*loading_info["missing_keys"], *loading_info.get("mismatched_keys", ())]
    if absent:
        some = ", ".join(sorted(map(str, absent))[:5])
        raise RunError(
            f"the merged checkpoint lacks {some}, which {type(model).__name__} has - name "
            "the base that the adapter was trained on"
        )
    return model.eval()  # type: ignore[no-any-return]


def answers(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """All that a model says of a batch, flat where there are tokens, padding left out, in fp32."""
    inputs = dict(batch)
    if getattr(model.config, "is_encoder_decoder", False) and not is_classifier(model):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        output = model(**inputs)
    found = logits_of(output).float()
    seen = batch["attention_mask"].bool()
    return found[seen] if found.ndim == 3 and found.shape[:2] == seen.shape else found


def is_classifier(model: Any) -> bool:
    """Whether the model makes its decoder's input itself."""
    name = type(unwrap_model(model)).__name__
    return name.endswith(("ForSequenceClassification", "ForQuestionAnswering"))


def logits_of(output: Any) -> Tensor:
    """A head's logits: of labels or tokens, of spans' ends, or a headless model's states."""
    for names in (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",)):
        if all(getattr(output, name, None) is not None for name in names):
            return torch.stack([getattr(output, name) for name in names], dim=-1).flatten(-2)
    raise RunError(f"{type(output).__name__} holds nothing to compare - say --verify off")


def padded(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Encoded rows as one padded batch."""
    from peftkit.preprocessing.batching import Batcher

    batch = Batcher(False, pad_id)([{**row, "labels": 0} for row in rows])
    batch.pop("labels")
    return batch
