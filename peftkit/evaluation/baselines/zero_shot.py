"""The zero-shot baseline: classes by the likelihood of their words after a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PretrainedConfig

from peftkit.evaluation.prediction import predict
from peftkit.loading.model import LoadedModel
from peftkit.runtime.distributed import World
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Task
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.zero_shot import Prompts, ZeroShotSettings, in_turn

CONTENT_FREE = "N/A"
"""What Zhao et al. (2021) put in place of a text to measure a model's bias."""


class Likelihoods(LanguageModeling, Task):
    """The log-probability of each answer after a prompt: the sum over its tokens."""

    answers_ids: list[list[int]]
    """The tokens of each answer."""

    def longest_answers(self) -> list[list[int]]:
        """Return the answers to evaluate after each prompt: their logits also give the probability
        of every other answer, all of whose tokens but the last they begin with."""
        found: list[list[int]] = []
        for ids in sorted(self.answers_ids, key=len, reverse=True):
            if not any(shares_prefix(leader, ids) for leader in found):
                found.append(ids)
        return found

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Return zero: there is no target."""
        return torch.zeros(())

    def known(self, labels: Tensor) -> int:
        """Return zero: there is no target."""
        return 0

    def outputs(self, logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return the log-probability of each answer, NaN for those covered by another of
        `longest_answers`."""
        pairs = zip(logits.split(list(sizes)), labels.split(list(sizes)), strict=True)
        return [self._said(part.float().log_softmax(dim=-1), own.tolist()) for part, own in pairs]

    def _said(self, likely: Tensor, leader: list[int]) -> np.ndarray:
        """Return the log-probability of all answers from the logits of one, (tokens,
        vocabulary)."""
        sums = [
            float(likely[torch.arange(len(ids)), ids].sum())
            if shares_prefix(leader, ids)
            else np.nan
            for ids in self.answers_ids
        ]
        return np.asarray(sums)


def shares_prefix(leader: Sequence[int], answer: Sequence[int]) -> bool:
    """Return whether all tokens of an answer but its last begin the other answer."""
    before = len(answer) - 1
    return before < len(leader) and list(leader[:before]) == list(answer[:before])


def is_causal(config: PretrainedConfig) -> bool:
    """Return whether a model's files declare a causal language model."""
    from transformers import AutoModelForCausalLM

    known: Any = AutoModelForCausalLM._model_mapping
    if config.is_encoder_decoder or type(config) not in known:
        return False
    return known[type(config)].__name__ in (config.architectures or ())


def sample_examples(how: ZeroShotSettings, given: EvalSplit) -> list[dict[str, str]]:
    """Return the few-shot examples, sampled from train."""
    return [
        given.train[row]
        for row in in_turn(given.train["label"][:], how.few_shot_examples, how.seed)
    ]


def predict_by_likelihood(
    base: LoadedModel,
    task: Likelihoods,
    prompts: Prompts,
    calibrate: bool,
    given: EvalSplit,
    world: World,
) -> list[np.ndarray]:
    """Return the probability of each class per row: that of its words after the prompt, the product
    over their tokens, normalized over the classes.

    Calibrated, each is first divided by its probability after a content-free text (Zhao et al.
    2021, section 5: W = diag(p_cf)^-1, b = 0), which also removes the bias against longer words
    (Holtzman et al. 2021), for which Brown et al. (2020, 2.4) divide by their number of tokens.
    """
    rows: list[Mapping[str, str]] = list(given.rows)
    free = {"text": CONTENT_FREE, "text_pair": CONTENT_FREE}
    *likely, nothing = log_likelihoods(base, task, [prompts.ids(r) for r in [*rows, free]], world)
    return list(
        to_probabilities(np.stack(likely), nothing if calibrate else np.zeros_like(nothing))
    )


def to_probabilities(likely: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """Return probabilities from log-likelihoods (rows, classes), divided by those without
    content."""
    found = likely - nothing
    exponentials = np.exp(found - found.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def log_likelihoods(
    base: LoadedModel, task: Likelihoods, prompts: Sequence[Sequence[int]], world: World
) -> list[np.ndarray]:
    """The log-probability of each answer behind each of the prompts."""
    leaders = task.longest_answers()
    both = [(prompt, leader) for prompt in prompts for leader in leaders]
    examples = {
        "input_ids": [[*prompt, *leader] for prompt, leader in both],
        "labels": [[*[IGNORE_INDEX] * len(prompt), *leader] for prompt, leader in both],
        "length": [len(prompt) + len(leader) for prompt, leader in both],
    }
    outputs = predict(base, task, Dataset.from_dict(examples), world).outputs
    parts = [np.stack(outputs[i : i + len(leaders)]) for i in range(0, len(outputs), len(leaders))]
    return [np.nanmax(part, axis=0) for part in parts]
