"""Answering: what a run says of held-out rows, and what its merged folder says by itself.

Transformers alone opens the folder, and reads the same texts by the tokenizer, chat template and
the configurations in it.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, TokenizersBackend, pipeline

from peftkit.architectures import unwrapped
from peftkit.conversations import asked
from peftkit.evaluation import collected, forward
from peftkit.generating import all_ends, generate_tokens, room_for_prompts, text_of, upto_end
from peftkit.generation import Generation
from peftkit.language import LanguageModelling
from peftkit.merging.as_trained import settings_in
from peftkit.merging.greedy import Answer, compare
from peftkit.model import Assembled, attach_batcher, load_tokenizer
from peftkit.recipe import Recipe
from peftkit.record import ParameterCount
from peftkit.rewriting import SOURCE
from peftkit.run_folder import RunFolder
from peftkit.stand_ins import marks_of
from peftkit.tasks import Given, Predictions

ROWS = 8
"""Held-out rows that are answered."""
NEW_TOKENS = 32
"""Tokens of an answer that are compared."""
UNCOUNTED = ParameterCount(trainable=0, total=0, base=0, head=0, adapter=0)
Columns = Mapping[str, Sequence[Any]]


class Question(Protocol):
    """Rows that both are asked about."""

    def ask(self, module: nn.Module) -> None:
        """Have the run's model answer, fed as `peftkit predict` feeds it."""

    def compared(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What the merged `model` says beside it: fields of a `MergeProof`. `tolerance` is how far
        a logit may move."""


class Run(NamedTuple):
    """A run's side: its recipe, its tokenizer, the rows and the labels' names."""

    recipe: Recipe
    tokenizer: Any
    columns: Columns
    names: Sequence[str]

    def fed(self, module: nn.Module) -> Assembled:
        """The run's `module` with what a run feeds it by, its hooks attached."""
        base, task = unwrapped(module), self.recipe.task
        batcher = attach_batcher(task, module, base, self.tokenizer, packed=False, ahead=0)
        return Assembled(module, self.tokenizer, batcher, UNCOUNTED, ())

    def holds_special(self, row: int) -> bool:
        """Whether a row's texts hold special tokens, which transformers may read as such."""
        known = marks_of(self.tokenizer)
        return any(any(known.found_in(column[row])) for column in self.columns.values())

    def read_otherwise(
        self, tokenizer: Any, ours: Sequence[Any], theirs: Sequence[Any]
    ) -> list[bool]:
        """For each row whether it becomes other tokens only because it holds special ones, which
        this `tokenizer` of transformers has been told to read as text, or cannot be told."""
        if not (tokenizer.split_special_tokens or self.recipe.task.reading == "labels"):
            return [False] * len(ours)
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [list(a) != list(b) and self.holds_special(row) for row, (a, b) in pairs]


def question_of(run: RunFolder, base: Path, columns: Columns) -> Question | None:
    """What the run on the `base` can be asked of the first rows in `columns`.

    None where its answers are of tokens or spans: those are what the logits are.
    """
    said = run.description()
    recipe = run.recipe.carrying(said.get("tuned", {}))
    task = recipe.task
    some = {name: list(column[:ROWS]) for name, column in columns.items()}
    side = Run(recipe, load_tokenizer(str(base), task), some, said["names"])
    if isinstance(task, LanguageModelling):
        return Texts(side, task)
    return Labels(side) if task.peft_type == "SEQ_CLS" else None


def plain_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers opens it; by the class that its settings name, where
    AutoTokenizer 5.23 takes the usual one of the architecture (qwen2)."""
    named = settings_in(folder / "tokenizer_config.json").get("tokenizer_class")
    loader: Any = TokenizersBackend if named == "TokenizersBackend" else AutoTokenizer
    return loader.from_pretrained(folder)


class Labels:
    """Rows whose answers are labels or numbers, which a pipeline of transformers gives too."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ids: list[list[int]] = []
        self.said = np.zeros((0, 0))
        """What the task keeps of each row, as probabilities: (rows, labels)."""

    def ask(self, module: nn.Module) -> None:
        """Have the run's model say each label's probability, or the numbers."""
        recipe, tokenizer, columns, names = self.run
        found = recipe.task.encode(columns, tokenizer, names, recipe.data.max_length)
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        self.ids = found["input_ids"]
        answered = forward(self.run.fed(module), recipe.task, rows, [range(len(rows))])
        self.said = np.asarray(collected(answered, found["labels"]).outputs)

    def compared(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What a pipeline says of the same texts."""
        tokenizer, columns = plain_tokenizer(folder), self.run.columns
        cut = {"truncation": True, "max_length": self.run.recipe.data.max_length}
        pair = "text_pair" in columns
        texts = [{"text": t} for t in columns["text"]]
        if pair:
            texts = [
                {**t, "text_pair": p} for t, p in zip(texts, columns["text_pair"], strict=True)
            ]
        ask = pipeline("text-classification", model=model, tokenizer=tokenizer, device=model.device)
        scored = [{s["label"]: s["score"] for s in ask(t, top_k=None, **cut)} for t in texts]
        theirs = np.asarray([[row.get(name, np.nan) for name in self.run.names] for row in scored])
        ids = [tokenizer(**t, **cut)["input_ids"] for t in texts]
        skipped = self.run.read_otherwise(tokenizer, self.ids, ids)
        return {"answers": self.judged(theirs, skipped, tolerance)}

    def judged(
        self, theirs: np.ndarray, skipped: Sequence[bool], tolerance: float
    ) -> dict[str, Any]:
        """The two sides row by row."""
        apart = np.abs(self.said - theirs).max(axis=1)
        chosen = [self.chosen(self.said), self.chosen(theirs)]
        equal, ties, different = 0, 0, []
        for row, skip in enumerate(skipped):
            if skip:
                continue
            if not apart[row] <= tolerance:  # NaN is not
                different.append(row + 1)
            elif chosen[0][row] == chosen[1][row]:
                equal += 1
            else:
                ties += 1
        return {
            "compared": len(skipped) - sum(skipped),
            "equal": equal,
            "near_ties": ties,
            "read_otherwise": sum(skipped),
            "different": different,
        }

    def chosen(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """The labels that the task takes each row's outputs for."""
        recipe, _, columns, names = self.run
        given = Given(columns, {}, names, resamples=0, tuned=recipe.task.carried)
        answers = recipe.task.answers(Predictions([], list(outputs), None), given)
        return [{k: v for k, v in each.items() if k in ("label", "labels")} for each in answers]


class Texts:
    """Rows whose answers are texts, generated when nothing is left to chance."""

    def __init__(self, run: Run, task: LanguageModelling) -> None:
        self.run, self.task = run._replace(columns=task.openings(run.columns)), task
        own = task.generate or Generation()
        most = min(own.max_new_tokens, NEW_TOKENS)
        greedy = {"temperature": 0.0, "beams": 1, "max_new_tokens": most, "stop": []}
        self.how = own.model_copy(update={**greedy, "min_new_tokens": 0})
        self.room = 0
        self.prompts: list[list[int]] = []
        self.said: list[Answer] = []

    @torch.no_grad()
    def ask(self, module: nn.Module) -> None:
        """Have the run's model continue its prompts."""
        recipe, tokenizer, columns, _ = self.run
        assembled, task = self.run.fed(module), self.task
        self.room = room_for_prompts(recipe, assembled, self.how)
        self.prompts = task.prompts(columns, tokenizer, self.room)
        stops, first = task.stop_ids(tokenizer), task.first_id(tokenizer)
        ends = all_ends(assembled, stops)
        found = generate_tokens(assembled, self.prompts, self.how, stops, first)
        self.said = [answer(tokens, tokenizer, ends) for tokens in found]

    @torch.no_grad()
    def compared(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What the folder says behind the prompts that its own tokenizer makes."""
        tokenizer = plain_tokenizer(folder)
        prompts = self.plain_prompts(tokenizer)
        theirs = generated(model, tokenizer, prompts, self.how.max_new_tokens)
        skipped = self.run.read_otherwise(tokenizer, self.prompts, prompts)
        kept = [not skip for skip in skipped]

        def is_tie(row: int, step: int, token: int) -> bool:
            chosen, prompt = ours[row].tokens, asking[row]
            logits = next_logits(model, prompt, chosen[:step])
            return bool(logits.max() - logits[[token, chosen[step]]].min() <= 2 * tolerance)

        ours, asking = list(compress(self.said, kept)), list(compress(prompts, kept))
        found = compare(ours, list(compress(theirs, kept)), is_tie)
        answers = {
            "compared": found.prompts,
            "equal": found.equal,
            "near_ties": found.near_ties,
            "read_otherwise": sum(skipped),
            "different": found.different,
        }
        return {"greedy": found.model_dump(), "answers": answers}

    def plain_prompts(self, tokenizer: Any) -> list[list[int]]:
        """The prompts as transformers makes them: by the chat template, of a source for an encoder,
        or of a text to go on from."""
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
        talks = map(asked, self.task.conversations(columns, ours, self.room))
        how = {"add_generation_prompt": True, "return_dict": True}
        found = [tokenizer.apply_chat_template(t.messages, tools=t.tools, **how) for t in talks]
        return [list(each["input_ids"][-self.room :]) for each in found]


def answer(tokens: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Answer:
    """Tokens as an answer."""
    text = text_of(tokens, tokenizer, ends, [])
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
    said = model.generation_config.eos_token_id
    ends = [said] if isinstance(said, int) else list(said or ())
    tokens = [upto_end(row, ends) for row in found[:, start:].tolist()]
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
