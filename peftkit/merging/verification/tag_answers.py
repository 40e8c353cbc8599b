"""Answering in tags: what a run and its merged folder say of each word."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import pipeline

from peftkit.evaluation.prediction import merge_batches, predict_batches
from peftkit.merging.verification.answers import RunSide, open_tokenizer
from peftkit.tasks.base import IGNORE_INDEX
from peftkit.tasks.token_classification.rows import sentences_in
from peftkit.text.subword_tokens import find_unknown_id


class TagAnswers:
    """Rows whose words have tags, which a pipeline of transformers gives at each token; those that
    are read at once, and not in several windows."""

    def __init__(self, run: RunSide) -> None:
        self.run = run
        self.places: list[list[int]] = []
        """Of each row the tokens that its words begin with."""
        self.ids: list[list[int]] = []
        self.answers: list[np.ndarray] = []
        """Of each row the tags' probabilities, (words, tags)."""

    def query(self, module: nn.Module) -> None:
        """Have the run's model say each tag's probability."""
        recipe, tokenizer, columns, names = self.run
        found = recipe.task.encode(columns, tokenizer, names, recipe.data.max_length)
        alone = [row for row in range(len(sentences_in(columns))) if found["of"].count(row) == 1]
        kept = [found["of"].index(row) for row in alone]
        self.run = self.run.of_rows(alone)
        examples = [{key: column[i] for key, column in found.items()} for i in kept]
        self.ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        self.places = [
            [p for p, label in enumerate(row) if label != IGNORE_INDEX] for row in labels
        ]
        batches = [range(len(examples))] if examples else []
        answered = predict_batches(self.run.fed(module), recipe.task, examples, batches)
        self.answers = list(merge_batches(answered, labels).outputs)

    def compare_with(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What a pipeline says of the same texts."""
        tokenizer = open_tokenizer(folder)
        tag = pipeline("token-classification", model, tokenizer=tokenizer, device=model.device)
        texts = [" ".join(each.words) for each in sentences_in(self.run.columns)]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        skipped = self.run.tokenized_differently(tokenizer, self.ids, ids)
        skipped = [skip or self.dropped(row, ids[row]) for row, skip in enumerate(skipped)]
        equal, ties, different = 0, 0, []
        for row, text in enumerate(texts):
            if skipped[row]:
                continue
            tags: Any = tag(text, ignore_labels=[])
            by_index = {each["index"]: each for each in tags}
            apart = self.apart(row, by_index)
            flips = [place for place, _, same in apart if not same]
            if not all(how_far <= tolerance for _, how_far, _ in apart):
                different.append(row + 1)
            elif flips:
                ties += 1
            else:
                equal += 1
        found = {"compared": len(texts) - sum(skipped), "equal": equal, "near_ties": ties}
        return {"answers": {**found, "tokenized_differently": sum(skipped), "different": different}}

    def dropped(self, row: int, theirs: Sequence[int]) -> bool:
        """Whether a row has words that the tokenizer drops: a run reads the unknown token there."""
        unknown, ours = find_unknown_id(self.run.tokenizer), self.ids[row]
        return list(theirs) != ours and list(theirs) == [i for i in ours if i != unknown]

    def apart(self, row: int, predicted: dict[int, Any]) -> list[tuple[int, float, bool]]:
        """For each word of a row: its token, how far the probability of what the pipeline says is
        from the run's, and whether that is what the run says."""
        names, found = list(self.run.names), []
        for place, sure in zip(self.places[row], self.answers[row], strict=True):
            other = predicted.get(place, {"entity": None})
            if other["entity"] not in names:
                found.append((place, np.inf, False))
                continue
            index = names.index(other["entity"])
            behind = float(sure.max() - sure[index]) / 2  # what both must move for it to be first
            how_far = max(behind, abs(float(sure[index]) - float(other["score"])))
            found.append((place, how_far, index == int(sure.argmax())))
        return found
