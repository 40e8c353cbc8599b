"""Made-up texts whose words tell their class: data for trying things in seconds on a CPU."""

import hashlib
import json
import random
from typing import Annotated, Literal

from pydantic import Field

from peftkit.data import Data
from peftkit.data.layout import taken_as
from peftkit.data.preflight import Wanted
from peftkit.data.reading import Found, Used
from peftkit.errors import DataError
from peftkit.sources import Source

_TOPICS = {
    "sport": "goal match team coach league stadium referee trophy",
    "food": "bread soup pepper kitchen cheese supper recipe garlic",
    "music": "guitar song choir melody drum concert violin chorus",
    "weather": "rain storm cloud sunshine frost thunder breeze fog",
    "money": "bank loan price market salary invoice budget coin",
    "travel": "train ticket airport hotel luggage border journey map",
    "animals": "dog horse eagle rabbit whale sheep tiger spider",
    "school": "teacher exam lesson pupil homework classroom essay grade",
}
_ROLES = {"text", "label"}
_COMMON = "the a this that we they he she saw had was found with near after again today"


class Synthetic(Data):
    """Generated sentences on a few topics; the label is the topic."""

    kind: Literal["synthetic"] = "synthetic"
    rows: Annotated[int, Field(ge=8)] = 400
    """How many rows are made, before test and validation are carved out of them."""
    classes: Annotated[int, Field(ge=2, le=len(_TOPICS))] = 2
    """How many topics."""

    def resolve(self) -> Source:
        """Nothing to fetch: the identity is that of the rows."""
        content = json.dumps(self._made()).encode()
        return Source(
            asked="synthetic",
            used="synthetic",
            origin="synthetic",
            location="",
            identity=f"sha256:{hashlib.sha256(content).hexdigest()}",
            note="generated texts: scores on them say only that training works",
        )

    def found(self, source: Source, wanted: list[Wanted], used: Used | None = None) -> Found:
        """All rows as the training split."""
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
        return Found(taken_as({"train": train}, self.splits), tuple(list(_TOPICS)[: self.classes]))

    def _made(self) -> list[tuple[str, str]]:
        topics = list(_TOPICS)[: self.classes]
        made: dict[str, str] = {}  # by text, so that no text comes twice
        chance = random.Random(self.seed)
        while len(made) < self.rows:
            topic = topics[len(made) % self.classes]
            made.setdefault(_sentence(topic, chance), topic)
        return list(made.items())


def vocabulary() -> list[str]:
    """Every word that a generated text can hold."""
    return sorted({word for words in [*_TOPICS.values(), _COMMON] for word in words.split()})


def _sentence(topic: str, chance: random.Random) -> str:
    telling = chance.choices(_TOPICS[topic].split(), k=chance.randint(2, 5))
    words = [*telling, *chance.choices(_COMMON.split(), k=chance.randint(4, 12))]
    chance.shuffle(words)
    return " ".join(words)
