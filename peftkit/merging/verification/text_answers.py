"""Answering in texts: what a run and its merged folder write behind the same prompts."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftkit.evaluation.generation import (
    decode_answer,
    find_end_ids,
    generate_tokens,
    max_prompt_length,
    trim_to_end,
)
from peftkit.merging.verification.answers import RunSide, open_tokenizer
from peftkit.merging.verification.greedy import Answer, compare
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.tasks.language_modeling.seq2seq import SOURCE
from peftkit.text.conversations import remove_last_answer

NEW_TOKENS = 32
"""Tokens of an answer that are compared."""


class TextAnswers:
    """Rows whose answers are texts, generated when nothing is left to chance."""

    def __init__(self, run: RunSide, task: LanguageModeling) -> None:
        self.run, self.task = run._replace(columns=task.prompt_rows(run.columns)), task
        own = task.generate or Generation()
        most = min(own.max_new_tokens, NEW_TOKENS)
        greedy = {"temperature": 0.0, "num_beams": 1, "max_new_tokens": most, "stop": []}
        self.how = own.model_copy(update={**greedy, "min_new_tokens": 0})
        self.room = 0
        self.prompts: list[list[int]] = []
        self.answers: list[Answer] = []

    @torch.no_grad()
    def query(self, module: nn.Module) -> None:
        """Have the run's model continue its prompts."""
        recipe, tokenizer, columns, _ = self.run
        loaded, task = self.run.fed(module), self.task
        self.room = max_prompt_length(recipe, loaded, self.how)
        self.prompts = task.prompts(columns, tokenizer, self.room)
        stops, first = task.stop_ids(tokenizer), task.first_id(tokenizer)
        ends = find_end_ids(loaded, stops)
        found = generate_tokens(loaded, self.prompts, self.how, stops, first)
        self.answers = [answer(tokens, tokenizer, ends) for tokens in found]

    @torch.no_grad()
    def compare_with(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What the folder says behind the prompts that its own tokenizer makes."""
        tokenizer = open_tokenizer(folder)
        prompts = self.plain_prompts(tokenizer)
        theirs = generated(model, tokenizer, prompts, self.how.max_new_tokens)
        skipped = self.run.tokenized_differently(tokenizer, self.prompts, prompts)
        kept = [not skip for skip in skipped]

        def is_tie(row: int, step: int, token: int) -> bool:
            chosen, prompt = ours[row].tokens, asking[row]
            logits = next_logits(model, prompt, chosen[:step])
            return bool(logits.max() - logits[[token, chosen[step]]].min() <= 2 * tolerance)

        ours, asking = list(compress(self.answers, kept)), list(compress(prompts, kept))
        found = compare(ours, list(compress(theirs, kept)), is_tie)
        answers = {
            "compared": found.prompts,
            "equal": found.equal,
            "near_ties": found.near_ties,
            "tokenized_differently": sum(skipped),
            "different": found.different,
        }
        return {"greedy": found.model_dump(), "answers": answers}

    def plain_prompts(self, tokenizer: Any) -> list[list[int]]:
        """The prompts as transformers makes them: by the chat template, of a source for an encoder,
        or of a text to continue."""
        ours, columns = self.run.tokenizer, self.run.columns
        form = self.task.prompt_format(ours)
        if form["kind"] == "source":
            texts = [form["prompt"].replace(SOURCE, source) for source in columns["source"]]
            cut = {"truncation": True, "max_length": self.room}
            return [list(tokenizer(text, **cut)["input_ids"]) for text in texts]
        if form["kind"] == "opening":
            begins, room = form["begins"], max(1, self.room - len(form["begins"]))
            texts = list(self.task.prompt_inputs(columns))
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            return [[*begins, *each[-room:]] for each in ids]
        talks = map(remove_last_answer, self.task.conversations(columns, ours, self.room))
        how = {"add_generation_prompt": True, "return_dict": True}
        found = [tokenizer.apply_chat_template(t.messages, tools=t.tools, **how) for t in talks]
        return [list(each["input_ids"][-self.room :]) for each in found]


def answer(tokens: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Answer:
    """Tokens as an answer."""
    text = decode_answer(tokens, tokenizer, ends, [])
    return Answer(tokens, text, bool(tokens) and tokens[-1] in ends)


def generated(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int
) -> list[Answer]:
    """What `generate` says, by the model's own generation configuration, in one batch."""
    encodes = model.config.is_encoder_decoder
    side = "right" if encodes else "left"
    batch = tokenizer.pad(
        {"input_ids": list(map(list, prompts))}, padding_side=side, return_tensors="pt"
    ).to(model.device)
    found = model.generate(**batch, max_new_tokens=most, do_sample=False, num_beams=1)
    start = 1 if encodes else batch["input_ids"].shape[1]
    end_ids = model.generation_config.eos_token_id
    ends = [end_ids] if isinstance(end_ids, int) else list(end_ids or ())
    tokens = [trim_to_end(row, ends) for row in found[:, start:].tolist()]
    return [answer(each, tokenizer, ends) for each in tokens]


def next_logits(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The logits (vocabulary,) of what follows a prompt and the `tokens` behind it, in fp32."""
    if model.config.is_encoder_decoder:
        start = model.generation_config.decoder_start_token_id
        rows = {"input_ids": [list(prompt)], "decoder_input_ids": [[start, *tokens]]}
    else:
        rows = {"input_ids": [[*prompt, *tokens]]}
    given = {name: torch.tensor(ids, device=model.device) for name, ids in rows.items()}
    logits: torch.Tensor = model(**given).logits[0, -1].float()
    return logits
