"""Likelihoods: each row's class by whose words a causal language model finds the likeliest."""

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
"""What Zhao et al. (2021) put in place of a text to see what a model says whatever the text."""


class Likelihoods(LanguageModeling, Task):
    """The log-probability of each of the `answers` behind a prompt: the sum over its tokens."""

    answers_ids: list[list[int]]
    """The tokens of each answer."""

    def longest_answers(self) -> list[list[int]]:
        """The answers that are read behind each prompt: the model's word on all of their tokens is
        also its word on each answer of which they have all but the last."""
        found: list[list[int]] = []
        for ids in sorted(self.answers_ids, key=len, reverse=True):
            if not any(shares_prefix(leader, ids) for leader in found):
                found.append(ids)
        return found

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """None: no answer is the right one here."""
        return torch.zeros(())

    def known(self, labels: Tensor) -> int:
        """Nothing."""
        return 0

    def outputs(self, logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
        """The log-probability of each answer, NaN of those that another leader stands for."""
        pairs = zip(logits.split(list(sizes)), labels.split(list(sizes)), strict=True)
        return [self._said(part.float().log_softmax(dim=-1), own.tolist()) for part, own in pairs]

    def _said(self, likely: Tensor, leader: list[int]) -> np.ndarray:
        """What one leader's tokens, (tokens, vocabulary), say of all answers."""
        sums = [
            float(likely[torch.arange(len(ids)), ids].sum())
            if shares_prefix(leader, ids)
            else np.nan
            for ids in self.answers_ids
        ]
        return np.asarray(sums)


def shares_prefix(leader: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether an answer is the leader's up to its last token."""
    before = len(answer) - 1
    return before < len(leader) and list(leader[:before]) == list(answer[:before])


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a model's files say that they are a causal language model's."""
    from transformers import AutoModelForCausalLM

    known: Any = AutoModelForCausalLM._model_mapping
    if config.is_encoder_decoder or type(config) not in known:
        return False
    return known[type(config)].__name__ in (config.architectures or ())


def sample_examples(how: ZeroShotSettings, given: EvalSplit) -> list[dict[str, str]]:
    """The answered rows, of train alone."""
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
    """The probability of each class for each of the rows: that of its words behind the prompt, the
    product over their tokens, as a share of all classes'.

    Calibrated, each is first divided by the same behind a text without content (Zhao et al. 2021,
    section 5: W = diag(p_cf)^-1, b = 0), which also undoes that longer words are less likely
    (Holtzman et al. 2021), for which Brown et al. (2020, 2.4) divide by their number.
    """
    rows: list[Mapping[str, str]] = list(given.rows)
    free = {"text": CONTENT_FREE, "text_pair": CONTENT_FREE}
    *likely, nothing = log_likelihoods(base, task, [prompts.ids(r) for r in [*rows, free]], world)
    return list(
        to_probabilities(np.stack(likely), nothing if calibrate else np.zeros_like(nothing))
    )


def to_probabilities(likely: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """Probabilities from log-likelihoods (rows, classes), each divided by that without content."""
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
    said = predict(base, task, Dataset.from_dict(examples), world).outputs
    parts = [np.stack(said[i : i + len(leaders)]) for i in range(0, len(said), len(leaders))]
    return [np.nanmax(part, axis=0) for part in parts]
