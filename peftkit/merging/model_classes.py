"""transformers' class names: of the model in a checkpoint, and of the Auto class that loads it."""

from collections.abc import Mapping
from typing import Any

from peftkit.merging.adapters import Adapter

AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForQuestionAnsweringSimple": "AutoModelForQuestionAnswering",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "WithLMHead": "AutoModelForCausalLM",
    "GenerationDecoder": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "EncoderDecoderModel": "AutoModelForSeq2SeqLM",
    "ForTextToText": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
"""transformers' Auto classes, by the ends of the class names that they load."""
LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
"""The Auto classes of models that generate text."""
AUTO_NAMES = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""transformers' tables of classes, by PEFT's task type."""


def auto_class_of(config: Mapping[str, Any]) -> str:
    """The name of the Auto class that loads a checkpoint with this configuration."""
    for name in config.get("architectures") or ():
        for ending, found in AUTO_CLASSES.items():
            if str(name).endswith(ending):
                return found
    return "AutoModel"


def is_language_model(config: Mapping[str, Any]) -> bool:
    """Whether the configuration's class generates text."""
    return auto_class_of(config) in LANGUAGE_MODELS


def architectures_of(adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
    """The merged model's `architectures`."""
    own = adapter.task
    task = adapter.config.get("task_type") if own is None else own.peft_type
    endings = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
    known = list(config.get("architectures") or [])
    ending = endings.get(str(task), "ForQuestionAnswering")
    if task not in AUTO_NAMES or any(str(name).endswith(ending) for name in known):
        return known
    # an artifact of peftkit names its class; for other adapters transformers knows it
    from transformers.models.auto import modeling_auto

    names: Any = getattr(modeling_auto, AUTO_NAMES[str(task)])
    found = names.get(config.get("model_type"))
    return [found] if isinstance(found, str) else known
