"""The few-shot baseline: training examples in the prompts of the untrained model."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from pydantic import SerializeAsAny

from peftkit.config.recipe import Recipe
from peftkit.evaluation.generation import generate_rows, max_prompt_length
from peftkit.evaluation.prediction import predict
from peftkit.loading.model import LoadedModel
from peftkit.runtime.distributed import World
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Task
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.counts import columns_in
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.text.chat_templates import ChatTemplate, RenderedChat
from peftkit.text.chat_tokens import tokenize_chats
from peftkit.text.conversations import Conversation
from peftkit.text.messages import is_answer, is_trained_on
from peftkit.text.special_tokens import encode_rendered

Columns = dict[str, list[Any]]


class FewShot(LanguageModeling, Task):
    """A task whose prompts are preceded by few-shot examples, `shots`, each a conversation."""

    asks: SerializeAsAny[LanguageModeling]
    """The task that is queried."""
    shots: list[Conversation]
    length: int
    """Tokens of a prompt without examples, as in training."""

    def prompts(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
    ) -> list[list[int]]:
        """Return each prompt after as many of the last few-shot examples as fit."""
        template, found = ChatTemplate(tokenizer, self._template), []
        for talk in self.asks.conversations(rows, tokenizer, self.length):
            asked = talk.first(-1) if is_answer(talk.messages[-1]) else talk
            kept = self.fit_examples(asked, template, tokenizer, max_length)
            text = template.render(prepend_examples(kept, asked), asks=True)
            found.append(tokenize(text, tokenizer)[-max_length:])
        return found

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids that end an answer."""
        return self.asks.stop_ids(tokenizer)

    def fit_examples(
        self, talk: Conversation, template: ChatTemplate, tokenizer: Any, room: int
    ) -> list[Conversation]:
        """Return the few-shot examples without the first ones, such that they and a conversation
        fit in `room`."""
        asks = not is_answer(talk.messages[-1])
        for first in range(len(self.shots)):
            text = template.render(prepend_examples(self.shots[first:], talk), asks=asks)
            if len(tokenize(text, tokenizer)) <= room:
                return self.shots[first:]
        return []

    def examples(self, given: EvalSplit, tokenizer: Any, room: int) -> tuple[Columns, list[int]]:
        """Return the rows with few-shot examples as encoded examples, whose labels are the tokens
        labeled without few-shot examples; and the number of few-shot examples per row."""
        template, texts, of, counts = ChatTemplate(tokenizer, self._template), [], [], []
        rows = {name: given.rows[name][:] for name in given.rows.column_names}
        for row, talk in enumerate(self.asks.conversations(rows, tokenizer, self.length)):
            kept = self.fit_examples(talk, template, tokenizer, room)
            counts.append(len(kept))
            earlier = sum(is_trained_on(message) for shot in kept for message in shot.messages)
            for text in skip_answers(
                template.render_answers(prepend_examples(kept, talk)), earlier
            ):
                texts.append(text)
                of.append(row)
        left, found = count_labels(given), tokenize_chats(texts, template, room)
        labels = [keep_labels(each.labels, left, row) for each, row in zip(found, of, strict=True)]
        ids = [each.input_ids for each in found]
        sizes = [len(each) for each in ids]
        return {"input_ids": ids, "labels": labels, "length": sizes, "of": of}, counts

    @property
    def _template(self) -> str | None:
        """The chat template of the task's settings."""
        return getattr(self.asks, "template", None)


def predict_few_shot(
    recipe: Recipe, base: LoadedModel, given: EvalSplit, world: World
) -> tuple[str, Predictions] | None:
    """Return the baseline's name and predictions; None if the recipe sets no few-shot examples."""
    task, how = recipe.task.text_generator, recipe.task.generation
    if task is None or how is None or not how.few_shot_examples:
        return None
    shown = make_few_shot_task(task, how, given, base.tokenizer, recipe.data.max_length)
    count = len(shown.shots)
    data = recipe.data.model_copy(update={"max_length": (count + 1) * shown.length})
    asking = recipe.model_copy(update={"task": shown, "data": data})
    # as many tokens as the model reads, an answer's included
    room = max_prompt_length(asking, base, how) + how.max_new_tokens
    examples, counts = shown.examples(given, base.tokenizer, room)
    said = predict(base, shown, Dataset.from_dict(examples), world).outputs
    made = generate_rows(asking, base, given.rows, world)
    outputs, loss = merge_rows(said, examples["of"], given)
    name = f"{count}-shot"
    notes = omission_notes(name, counts, count)
    return name, Predictions([], outputs, loss, **made._asdict(), notes=notes)


def make_few_shot_task(
    task: LanguageModeling, how: Generation, given: EvalSplit, tokenizer: Any, length: int
) -> FewShot:
    """Return the task with training rows sampled by seed as few-shot examples."""
    count = min(how.few_shot_examples or 0, len(given.train))
    rows = given.train.select(random.Random(how.seed).sample(range(len(given.train)), count))
    columns = {name: rows[name][:] for name in rows.column_names}
    shots = task.conversations(columns, tokenizer, length)
    return FewShot(kind="shown", generate=how, asks=task, shots=shots, length=length)


def omission_notes(name: str, counts: Sequence[int], wanted: int) -> tuple[str, ...]:
    """Return a note on the rows with fewer few-shot examples than wanted."""
    fewer = [count for count in counts if count < wanted]
    if not fewer:
        return ()
    mean = sum(fewer) / len(fewer)
    said = f"{len(fewer)} of {len(counts)} rows have room for fewer ({mean:.1f} on average)"
    return (f"{name}: {said}; the first ones are dropped",)


def prepend_examples(shots: Sequence[Conversation], talk: Conversation) -> Conversation:
    """Return few-shot examples and a conversation as one conversation with the tools of all and the
    system prompt of the last."""
    messages = talk.messages
    system = [message for message in messages[:1] if message["role"] == "system"]
    before = [m for shot in shots for m in shot.messages if m["role"] != "system"]
    tools = list(talk.tools or [])
    for shot in shots:
        tools += [tool for tool in shot.tools or [] if tool not in tools]
    return Conversation([*system, *before, *messages[len(system) :]], tools or None)


def skip_answers(texts: Iterator[RenderedChat], count: int) -> Iterator[RenderedChat]:
    """Yield the texts of a conversation without the spans of its first `count` answers."""
    for text in texts:
        spans = text.spans[count:]
        count = max(0, count - len(text.spans))
        if spans:
            yield RenderedChat(text.text, spans)


def tokenize(text: str, tokenizer: Any) -> list[int]:
    """Return a text's token ids."""
    found = encode_rendered(tokenizer, [text], add_special_tokens=False, verbose=False)
    return list(found["input_ids"][0])


def row_indices(examples: Any) -> Sequence[int]:
    """Return the index of each example's row."""
    known = "of" in columns_in(examples)
    return list(examples["of"]) if known else range(len(examples["labels"]))


def count_labels(given: EvalSplit) -> dict[int, int]:
    """Return the number of labeled tokens per row."""
    found: dict[int, int] = {}
    for row, labels in zip(row_indices(given.examples), given.examples["labels"], strict=True):
        known = sum(label != IGNORE_INDEX for label in labels[1:])  # nothing comes before the first
        found[row] = found.get(row, 0) + known
    return found


def keep_labels(labels: Sequence[int], left: dict[int, int], row: int) -> list[int]:
    """Return the labels that are `left` for a row, counting them down: bytes are counted up to
    where max_length truncates an answer without few-shot examples."""
    found = []
    for label in labels:
        known = label != IGNORE_INDEX and left.get(row, 0) > 0
        left[row] = left.get(row, 0) - known
        found.append(label if known else IGNORE_INDEX)
    return found


def merge_rows(
    said: Sequence[np.ndarray], of: Sequence[int], given: EvalSplit
) -> tuple[list[np.ndarray], float | None]:
    """Return the outputs of each row at the position of its first example without few-shot
    examples, and the mean loss over all tokens."""
    sums: dict[int, np.ndarray] = {}
    for (mean, count), row in zip(said, of, strict=True):
        sums[row] = sums.get(row, np.zeros(2)) + np.asarray([float(mean) * count, count])
    nats, tokens = sum(sums.values(), np.zeros(2))
    outputs = []
    for row in row_indices(given.examples):
        own, count = sums.pop(row, np.zeros(2))
        outputs.append(np.asarray([own / count if count else 0.0, count]))
    return outputs, float(nats / tokens) if tokens else None
