"""Classes: what transformers calls the model in a checkpoint, and the class that opens it."""

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
"""transformers' Auto classes, by how the names of the classes end that they open."""
LANGUAGE = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
"""Those of models with an output layer over the vocabulary, from which text is generated."""
AUTO_NAMES = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""transformers' tables of classes, by PEFT's name of the task."""


def auto_class_of(config: Mapping[str, Any]) -> str:
    """The name of the class of transformers that opens such a checkpoint."""
    for name in config.get("architectures") or ():
        for ending, found in AUTO_CLASSES.items():
            if str(name).endswith(ending):
                return found
    return "AutoModel"


def is_language_model(config: Mapping[str, Any]) -> bool:
    """Whether the class that the configuration names generates text."""
    return auto_class_of(config) in LANGUAGE


def classes_of(adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
    """The class of the merged model, as `architectures` names it."""
    own = adapter.task
    task = adapter.config.get("task_type") if own is None else own.peft_type
    endings = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
    known = list(config.get("architectures") or [])
    ending = endings.get(str(task), "ForQuestionAnswering")
    if task not in AUTO_NAMES or any(str(name).endswith(ending) for name in known):
        return known
    # an artifact of ours names its class; of another, transformers knows it
    from transformers.models.auto import modeling_auto

    names: Any = getattr(modeling_auto, AUTO_NAMES[str(task)])
    found = names.get(config.get("model_type"))
    return [found] if isinstance(found, str) else known
