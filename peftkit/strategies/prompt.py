"""Soft prompts: learned embeddings before each text, trained directly or through a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from peftkit.errors import Fault
from peftkit.models.layouts import ARCHITECTURES
from peftkit.strategies.base import ExportedModule, PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from peftkit.tasks.base import Task


class VirtualTokens(PeftStrategy):
    """What prompts have in common: virtual tokens take part in a text's attention and positions.

    The head reads the token that it reads without a prompt, as P-tuning v2's code does: [CLS] or
    the last one of the text. PEFT 0.21 alone reads the first virtual token of an encoder, and the
    last position of a decoder's row, be it padding; see `peftkit.loading.token_selection`.
    """

    num_virtual_tokens: PositiveInt = 20
    """Virtual tokens before each text; they count toward the longest sequence of the model."""

    packs: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    # PEFT loads the artifact too, but reads other tokens than the head was trained on
    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "peftkit"

    @property
    def num_prompt_tokens(self) -> int:  # type: ignore[override]
        """The virtual tokens."""
        return self.num_virtual_tokens

    def exported_modules(self, model: "nn.Module") -> list[ExportedModule]:
        """The prompt."""
        from peftkit.models.exported import prompt

        adapted: Any = model
        return [ExportedModule("prompt", prompt, {}, {"prompt": adapted.get_prompt(1)[0]})]

    def shape(self, model: "PreTrainedModel") -> dict[str, Any]:
        """PEFT's settings of prompt and model, which PEFT cannot read from every config."""
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": embedding_size(model),
            "num_layers": model.config.num_hidden_layers,
            "num_attention_heads": model.config.num_attention_heads,
        }

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """Models that need token ids, or whose head reads an unknown token."""
        model_type, known = config.model_type, ARCHITECTURES.get(config.model_type)
        if task.peft_type == "SEQ_CLS" and getattr(config, "is_encoder_decoder", False):
            what = f"a {model_type} classifier finds the end of a text in token ids, and a prompt "
            return [Fault("strategy", f"{what}has none - use strategy=prefix or strategy=lora")]
        if task.peft_type == "QUESTION_ANS" and getattr(config, "is_encoder_decoder", False):
            what = f"a {model_type} decoder finds answers in token ids, and a prompt has none - "
            return [Fault("strategy", f"{what}use strategy=prefix or strategy=lora")]
        if task.reading == "labels" and getattr(config, "is_encoder_decoder", False):
            what = f"PEFT puts a prompt before what a {model_type} decoder says too, and so shifts "
            return [Fault("strategy", f"{what}it - use strategy=prefix or strategy=lora")]
        if known is None:
            names = ", ".join(ARCHITECTURES)
            what = f"which token a {model_type} classifier reads is not known, only of {names} - "
            return [Fault("strategy", f"{what}use strategy=lora, or a model of these")]
        if getattr(config, "classifier_pooling", "cls") != "cls":
            what = f"a prompt would be part of the mean that this {model_type} classifier reads - "
            return [Fault("strategy", f"{what}use strategy=prefix or strategy=lora")]
        return []


class Prompt(VirtualTokens):
    """The embeddings themselves are trained (Lester et al. 2021, section 2), through PEFT."""

    kind: Literal["prompt"] = "prompt"
    init_text: str | None = Field(default=None, min_length=1)
    """Initialize from the embeddings of this text, repeated to `num_virtual_tokens`; null: from
    tokens sampled from the vocabulary."""

    default_lr: ClassVar[float] = 3e-2
    source: ClassVar[str] = "arXiv:2104.08691"

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """Also an `init_text` that is longer than the prompt."""
        faults = super().incompatibilities(config, task)
        folder = str(config.name_or_path)
        if self.init_text is None or not (Path(folder) / "tokenizer_config.json").is_file():
            return faults
        count = len(token_ids(self.init_text, folder))
        if not count:
            faults.append(
                Fault("strategy.init_text", f"{self.init_text!r} gives no token - write a word")
            )
        if count > self.num_virtual_tokens:
            what = f"is {count} tokens long, the prompt {self.num_virtual_tokens}"
            fix = f"use strategy.num_virtual_tokens={count}, or a shorter text"
            faults.append(Fault("strategy.init_text", f"{what} - {fix}"))
        return faults

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """Prompt tuning; `adapt` sets the embeddings of a text, without special tokens."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type=task.peft_type_of(model),
            **self.shape(model),
            prompt_tuning_init="SAMPLE_VOCAB" if self.init_text is None else "RANDOM",
            modules_to_save=saved_heads(model, task),
        )

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel` whose prompt is initialized from the text."""
        import torch

        adapted: Any = super().adapt(model, task)
        if self.init_text is not None and model.device.type != "meta":
            ids = token_ids(self.init_text, str(model.name_or_path))
            row = torch.tensor(
                (ids * self.num_virtual_tokens)[: self.num_virtual_tokens], device=model.device
            )
            with torch.no_grad():
                start = adapted.word_embeddings(row)
                adapted.prompt_encoder[adapted.active_adapter].embedding.weight.copy_(start)
        return adapted  # type: ignore[no-any-return]


class PTuning(VirtualTokens):
    """The embeddings come out of a small trained network (Liu et al. 2021, section 3), by PEFT.

    The network is gone after training: the artifact holds what it gave.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers, or two of a bidirectional LSTM and two linear ones."""
    encoder_hidden_size: PositiveInt | None = None
    """Its width; null: as wide as the model's embeddings."""

    default_lr: ClassVar[float] = 3e-2
    source: ClassVar[str] = "arXiv:2103.10385"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """P-tuning with the chosen encoder."""
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            task_type=task.peft_type_of(model),
            **self.shape(model),
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_hidden_size or embedding_size(model),
            modules_to_save=saved_heads(model, task),
        )

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder, computed as predictions are: an LSTM rounds in its own way where
        gradients are wanted (torch 2.13, on a CPU)."""
        import torch

        with torch.no_grad():
            super().save(model, folder)


def embedding_size(model: "PreTrainedModel") -> int:
    """The width of a token's embedding, which ELECTRA's hidden size is not."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[1])


def token_ids(text: str, folder: str) -> list[int]:
    """The token ids of a text without special tokens, by the tokenizer in `folder`."""
    from transformers import AutoConfig

    from peftkit.text.tokenizer_files import open_tokenizer

    tokenizer = open_tokenizer(Path(folder), AutoConfig.from_pretrained(folder))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
