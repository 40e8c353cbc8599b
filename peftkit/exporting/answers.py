"""A run's greedily generated texts, compared with those of an exported folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.config.recipe import Recipe
from peftkit.evaluation.generation import (
    decode_answer,
    find_end_ids,
    generate_tokens,
    max_prompt_length,
)
from peftkit.evaluation.prediction import move_to_device
from peftkit.exporting.proof import columns_to_compare, run_folder_code, source_of
from peftkit.loading.model import LoadedModel
from peftkit.merging.verification.greedy import Answer, compare
from peftkit.merging.verification.proof import MARGIN
from peftkit.merging.verification.verify import difference
from peftkit.models.architectures import unwrap_model
from peftkit.records.run_dir import RunDir
from peftkit.tasks.base import IGNORE_INDEX
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation

ROWS = 16
"""Texts that are compared."""
MOST_TOKENS = 128
"""Tokens of an answer that are compared."""
MOST_PROBABLE = 16
"""The run's most probable tokens at each step, whose logits are compared."""
GENERATING = """
import runpy
generate = runpy.run_path(given["folder"] + "/generate.py")
ends = generate["ends_of"](model)
tokens = generate["answers_of"](model, tokenizer, given["texts"], **given["how"])
said = []
for asked, ours, likely, theirs in zip(given["texts"], given["said"], given["likely"], tokens):
    prompt = generate["prompt_of"](tokenizer, asked)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = model.generation_config.decoder_start_token_id
            rows = {"input_ids": [prompt], "decoder_input_ids": [[start, *ours[:-1]]]}
            first = 0
        else:
            rows, first = {"input_ids": [[*prompt, *ours[:-1]]]}, len(prompt) - 1
        logits = model(**{key: torch.tensor(ids) for key, ids in rows.items()}).logits[0, first:]
    found = logits.float().gather(1, torch.tensor(likely)).flatten().tolist()
    text = generate["text_of"](tokenizer, theirs, ends)
    said.append({"tokens": theirs, "text": text, "logits": found, "ended": theirs[-1] in ends})
print(json.dumps(said))
"""
"""The second part of the process for a language model: its answers and logits."""


class Answers:
    """Prompts, and the run's greedy answers."""

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        texts: Sequence[str] | None,
        rows: int = ROWS,
        most: int = MOST_TOKENS,
    ) -> None:
        assert recipe.task.text_generator is not None, "the task predicts no texts"
        self.task: LanguageModeling = recipe.task.text_generator
        self.said_of: str = source_of(texts)
        columns = columns_to_compare(run, recipe, texts, rows)
        self.columns: Mapping[str, Sequence[Any]] = (
            columns if texts is not None else self.task.prompt_rows(columns)
        )
        own = recipe.task.generation or Generation()
        most = min(own.max_new_tokens, most)
        greedy = {"temperature": 0.0, "num_beams": 1, "max_new_tokens": most}
        self.how: Generation = own.model_copy(update=greedy)
        self.answers: list[Answer] = []
        self.likely: list[Tensor] = []
        """The most probable tokens at each step of each answer, (steps, MOST_PROBABLE)."""
        self.logits: list[Tensor] = []
        """Their logits."""

    @torch.no_grad()
    def query(self, recipe: Recipe, loaded: LoadedModel, names: Sequence[str]) -> None:
        """Generate the run's answers, as `peftkit predict` does, with the logits of each token."""
        tokenizer, task = loaded.tokenizer, self.task
        room = max_prompt_length(recipe, loaded, task.generate or Generation())
        prompts = task.prompts(self.columns, tokenizer, room)
        stops, first = task.stop_ids(tokenizer), task.first_id(tokenizer)
        generated = generate_tokens(loaded, prompts, self.how, stops, first)
        ends = find_end_ids(loaded, stops)
        self.answers = [self.answer(tokens, tokenizer, ends) for tokens in generated]
        for prompt, tokens in zip(prompts, generated, strict=True):
            logits = logits_along(loaded, prompt, tokens)
            likely = logits.topk(MOST_PROBABLE - 1).indices
            # a forced token may not be likely
            likely = torch.cat([likely, torch.tensor(tokens)[:, None]], dim=1)
            self.likely.append(likely)
            self.logits.append(logits.gather(1, likely))

    def inputs(self) -> list[Any]:
        """The inputs: texts, or conversations."""
        return list(self.task.prompt_inputs(self.columns))

    def answer(self, tokens: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Answer:
        """Tokens as an answer."""
        text = decode_answer(tokens, tokenizer, ends, self.how.stop)
        return Answer(tokens, text, bool(tokens) and tokens[-1] in ends)

    def compare_with(self, folder: Path, base: Path | None, names: Sequence[str]) -> dict[str, Any]:
        """The folder's answers, compared with the run's: fields of a `MergeProof`.

        Raises `RunError` if the folder cannot be loaded.
        """
        how = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.how.max_new_tokens}
        given = {
            "texts": self.inputs(),
            "how": how,
            "said": [list(answer.tokens) for answer in self.answers],
            "likely": [likely.tolist() for likely in self.likely],
        }
        found = run_folder_code(folder, base, GENERATING, given)
        logits = torch.cat([torch.tensor(each.pop("logits")) for each in found])
        apart = difference(torch.cat([each.flatten() for each in self.logits]), logits)
        theirs = [Answer(**each) for each in found]
        greedy = compare(self.answers, theirs, self.tie(MARGIN * apart["largest"]))
        return {**apart, "rows": len(theirs), "texts": self.said_of, "greedy": greedy}

    def tie(self, slack: float) -> Callable[[int, int, int], bool]:
        """A function that returns whether, at a step of a row, a token's logit is within `slack` of
        the generated one's."""

        def is_tie(row: int, step: int, token: int) -> bool:
            known = self.logits[row][step][self.likely[row][step] == token]
            return len(known) > 0 and bool(self.logits[row][step][-1] - known[0] <= slack)

        return is_tie


def logits_along(loaded: LoadedModel, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The logits that each of an answer's `tokens` was chosen by, (tokens, vocabulary), in fp32."""
    module: Any = loaded.module.eval()
    apart = unwrap_model(module).config.is_encoder_decoder
    whole = list(prompt) if apart else [*prompt, *tokens]
    labels = list(tokens) if apart else [*[IGNORE_INDEX] * len(prompt), *tokens]
    batch = loaded.batcher([{"input_ids": whole, "labels": labels}])
    batch.pop("labels")
    logits: Tensor = module(**move_to_device(batch, next(module.parameters()).device)).logits
    return logits.float().cpu()
