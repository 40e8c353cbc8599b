"""Synthetic texts whose words identify their class, for trying things in seconds on a CPU."""

import hashlib
import json
import random
from typing import Annotated, Literal

from pydantic import Field

from peftkit.data.base import Data
from peftkit.data.layout import rename_splits
from peftkit.data.reading import FileSplits, UsedRoles
from peftkit.data.validation import RequestedColumn
from peftkit.errors import DataError
from peftkit.hub.source import Source
from peftkit.text.synthetic_words import COMMON_WORDS, TOPICS

_ROLES = {"text", "label"}


class Synthetic(Data):
    """Generated sentences on a few topics; the label is the topic."""

    kind: Literal["synthetic"] = "synthetic"
    rows: Annotated[int, Field(ge=8)] = 400
    """Number of rows, before test and validation rows are taken from them."""
    classes: Annotated[int, Field(ge=2, le=len(TOPICS))] = 2
    """Number of topics."""

    def resolve(self) -> Source:
        """Return a source that is identified by its rows; nothing is downloaded."""
        content = json.dumps(self._made()).encode()
        return Source(
            requested="synthetic",
            used="synthetic",
            origin="synthetic",
            location="",
            identity=f"sha256:{hashlib.sha256(content).hexdigest()}",
            note="generated texts: scores on them say only that training works",
        )

    def read_splits(
        self, source: Source, wanted: list[RequestedColumn], used: UsedRoles | None = None
    ) -> FileSplits:
        """Return all rows as the train split."""
        from datasets import Dataset, Features, Value

        lacking = [want.role for want in wanted if want.needed and want.role not in _ROLES]
        if lacking:
            what = f"have no {', '.join(lacking)} - give real data, or another task"
            raise DataError(f"synthetic texts {what}")
        rows = [
            {"row": f"synthetic:{index}", "text": text, "label": label}
            for index, (text, label) in enumerate(self._made())
        ]
        features = Features({name: Value("string") for name in ("row", "text", "label")})
        train = Dataset.from_list(rows, features=features)
        return FileSplits(
            rename_splits({"train": train}, self.splits), tuple(list(TOPICS)[: self.classes])
        )

    def _made(self) -> list[tuple[str, str]]:
        topics = list(TOPICS)[: self.classes]
        made: dict[str, str] = {}  # by text, so that no text is repeated
        chance = random.Random(self.seed)
        while len(made) < self.rows:
            topic = topics[len(made) % self.classes]
            made.setdefault(_make_sentence(topic, chance), topic)
        return list(made.items())


def _make_sentence(topic: str, chance: random.Random) -> str:
    telling = chance.choices(TOPICS[topic].split(), k=chance.randint(2, 5))
    words = [*telling, *chance.choices(COMMON_WORDS.split(), k=chance.randint(4, 12))]
    chance.shuffle(words)
    return " ".join(words)
