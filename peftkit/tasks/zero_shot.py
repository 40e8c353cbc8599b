"""Zero-shot and few-shot prompts for labels, for a causal language model without training."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import NonNegativeInt, field_validator

from peftkit.errors import DataError, Fault
from peftkit.registry import Settings
from peftkit.text.special_tokens import encode_rendered, encode_text, escape_special_tokens

LABEL = "{label}"
PLACE = re.compile(r"\{(text|text_pair)\}")
APART = "\n\n"
"""The separator between few-shot examples."""
LEAST_ROOM = 8
"""Tokens that must be left of each text; otherwise few-shot examples are dropped."""


class ZeroShotSettings(Settings):
    """How a causal language model without training is asked for labels: the one whose words it
    finds the likeliest behind the row is its answer."""

    template: str | None = None
    """What it reads, with {text}, {text_pair} where there are pairs, and {label} as its end; null:
    each on a line of its own."""
    label_words: dict[str, str] | None = None
    """What it is to say for each label; null: the label's name."""
    few_shot_examples: NonNegativeInt = 0
    """Answered rows of train that it reads before, where it is asked once more; each costs as much
    as the row itself."""
    calibrate: bool = True
    """Divide by how likely the words are behind 'N/A' in place of the text (Zhao et al. 2021)."""
    seed: int = 0
    """Draws the answered rows, the classes taking turns."""

    @field_validator("template")
    @classmethod
    def _has_its_places(cls, said: str | None) -> str | None:
        if said is None:
            return None
        for place in ("{text}", LABEL):
            if said.count(place) != 1:
                what = f"should have {place} once (got {said!r})"
                raise ValueError(f"{what} - as '{{text}}\\nSentiment: {{label}}'")
        if not said.endswith(LABEL):
            raise ValueError(f"should end in {LABEL} (got {said!r}) - put what follows before it")
        return said

    @field_validator("label_words")
    @classmethod
    def _are_told_apart(cls, said: dict[str, str] | None) -> dict[str, str] | None:
        if said is not None and not all(words.strip() for words in said.values()):
            raise ValueError("should all be words - a label that is never said has no likelihood")
        if said is not None and len({words.strip() for words in said.values()}) < len(said):
            raise ValueError("should differ - labels of the same words cannot be told apart")
        return said

    def faults(self, names: Sequence[str], columns: Sequence[str]) -> list[Fault]:
        """What does not fit the labels, or the columns that there are."""
        found = []
        if self.label_words is not None and set(self.label_words) != set(names):
            what = f"should have words for {', '.join(names)} (got {', '.join(self.label_words)})"
            found.append(Fault("task.zero_shot.label_words", f"{what} - give each of them its own"))
        pair = "{text_pair}"
        if self.template is not None and (pair in self.template) != ("text_pair" in columns):
            what = f"has no {pair}, and the rows have two texts - put it where the second belongs"
            if pair in self.template:
                what = f"has {pair}, and the rows have one text - drop it, or set data.text_pair"
            found.append(Fault("task.zero_shot.template", what))
        return found


def in_turn(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """At most `count` rows, drawn by `seed`; the classes take turns while they last."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    seen: Counter[str] = Counter()
    rounds = {}
    for row in order:
        rounds[row] = seen[labels[row]]
        seen[labels[row]] += 1
    return sorted(order, key=lambda row: rounds[row])[:count]


class Prompts:
    """Rows as the tokens of prompts, behind answered rows (`shots`); and what may follow."""

    def __init__(
        self,
        how: ZeroShotSettings,
        names: Sequence[str],
        tokenizer: Any,
        shots: Sequence[Mapping[str, str]],
        is_pair: bool,
        max_length: int,
        positions: int | None,
    ) -> None:
        """Texts have at most `max_length` tokens each row, and less where the model's `positions`
        are too few for all rows; where hardly anything would be left, the first shots are dropped.
        """
        texts = "{text}\n{text_pair}" if is_pair else "{text}"
        asked = (how.template or f"{texts}\nLabel: {LABEL}").removesuffix(LABEL)
        self.tokenizer, self.asked = tokenizer, asked.rstrip(" ")
        self.gap = asked[len(self.asked) :]
        self.words = {
            name: (how.label_words or {}).get(name, name.replace("_", " ")) for name in names
        }
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.begin = [tokenizer.bos_token_id] if begins else []
        self.limit = None if positions is None else positions - max(map(len, self.answers()))
        self.room, self.shots = max_length, list(shots)
        if self.limit is not None:
            empty = max(len(self._ids(self._filled({}, word))) for word in self.words.values())
            while self.shots and self._share() - empty < LEAST_ROOM:
                del self.shots[0]
            self.room = max(1, min(max_length, self._share() - empty))
        answered = [self._filled(shot, self.words[shot["label"]]) for shot in self.shots]
        self.before = "".join(answered)

    def answers(self) -> list[list[int]]:
        """The tokens of each label's words, as they are behind a prompt; in id order.

        Raises `DataError` for a label without any.
        """
        tail = PLACE.split(self.asked)[-1]
        before = len(self._ids(tail))
        found = [self._ids(f"{tail}{self.gap}{word}")[before:] for word in self.words.values()]
        for name, ids in zip(self.words, found, strict=True):
            if not ids:
                what = f"the label {name!r} has no token of its own behind {tail!r}"
                fix = "name its words, or set task.untrained_baseline=false"
                raise DataError("labels:", [Fault("task.zero_shot.label_words", f"{what} - {fix}")])
        return found

    def ids(self, row: Mapping[str, str]) -> list[int]:
        """The tokens of the prompt for a row, up to where its label's words would begin."""
        ids = self._ids(f"{self.before}{self._filled(row)}")
        most = len(ids) if self.limit is None else self.limit - len(self.begin)
        return [*self.begin, *ids[-most:]]

    def _ids(self, text: str) -> list[int]:
        found = encode_rendered(self.tokenizer, [text], add_special_tokens=False, verbose=False)
        return list(found["input_ids"][0])

    def _share(self) -> int:
        """The tokens that each of the rows may have."""
        assert self.limit is not None
        return (self.limit - len(self.begin)) // (len(self.shots) + 1)

    def _filled(self, row: Mapping[str, str], word: str | None = None) -> str:
        """A row in the template, with its answer or without."""
        texts = self._cut({name: row.get(name, "") for name in PLACE.findall(self.asked)})
        # in one go: a text may say {text_pair} itself
        asked = PLACE.sub(
            lambda place: escape_special_tokens(self.tokenizer, texts[place[1]]), self.asked
        )
        return asked if word is None else f"{asked}{self.gap}{word}{APART}"

    def _cut(self, texts: Mapping[str, str]) -> dict[str, str]:
        """A row's texts from their beginnings on, such that both have room."""
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        found = encode_text(self.tokenizer, list(texts.values()), **how)["offset_mapping"]
        room, kept = self.room, {}
        others = sum(map(len, found))
        for (name, text), offsets in zip(texts.items(), found, strict=True):
            others -= len(offsets)
            own = max(room - others, room // 2) if others else room
            kept[name] = text if len(offsets) <= own else text[: offsets[own - 1][1]] if own else ""
            room -= min(own, len(offsets))
        return kept
