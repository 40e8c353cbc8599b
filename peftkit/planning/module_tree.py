"""The tree: an adapted model module by module, with what each holds and what of it trains."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.tree import Tree
    from torch import nn

    from peftkit.config.recipe import Recipe

REPLACED = "original_module"
"""What PEFT keeps beside its trained copy of a head; a head counts once."""


@dataclass(frozen=True)
class Weight:
    """One parameter of a module."""

    name: str
    shape: tuple[int, ...]
    count: int
    """Weights in it; 0 where it is one that stands in the tree already."""
    trains: bool


@dataclass(frozen=True)
class Branch:
    """A module that holds parameters, or several alike that follow each other."""

    name: str
    """Its name in its parent, or '0-5' of several; a chain of only children is one name."""
    kind: str
    """Its class."""
    weights: tuple[Weight, ...]
    """Its own parameters."""
    below: tuple["Branch", ...]
    repeats: int = 1
    """How many modules the branch stands for."""

    @property
    def total(self) -> int:
        """All weights in it, those of all repeats together."""
        own = sum(weight.count for weight in self.weights)
        return self.repeats * (own + sum(branch.total for branch in self.below))

    @property
    def trainable(self) -> int:
        """Those of them that train."""
        own = sum(weight.count for weight in self.weights if weight.trains)
        return self.repeats * (own + sum(branch.trainable for branch in self.below))

    def nested(self) -> dict[str, Any]:
        """The branch as plain nested data."""
        return {
            "name": self.name,
            "class": self.kind,
            "repeats": self.repeats,
            "total": self.total,
            "trainable": self.trainable,
            "weights": [vars(weight) for weight in self.weights],
            "below": [branch.nested() for branch in self.below],
        }


def module_tree(recipe: "Recipe") -> Branch:
    """The recipe's adapted model from its configuration alone; its totals are the plan's."""
    from peftkit.planning.plan import load_meta_model

    module, _, _ = load_meta_model(recipe)
    return replace(branch_of("", module, set()), name=recipe.model)


def branch_of(name: str, module: "nn.Module", seen: set[int]) -> Branch:
    """The branch of `module`; `seen` are the parameters that stand in the tree already."""
    weights = []
    for own, parameter in module.named_parameters(recurse=False):
        count = 0 if id(parameter) in seen else parameter.numel()
        seen.add(id(parameter))
        weights.append(Weight(own, tuple(parameter.shape), count, parameter.requires_grad))
    below = [
        branch_of(own, child, seen)
        for own, child in module.named_children()
        if own != REPLACED and any(True for _ in child.parameters())
    ]
    if len(below) == 1 and not weights:
        only = below[0]
        return replace(only, name=f"{name}.{only.name}")
    return Branch(name, type(module).__name__, tuple(weights), tuple(folded(below)))


def folded(branches: list[Branch]) -> Iterator[Branch]:
    """Branches, those that follow each other and differ in their numbers alone as one."""
    waiting: Branch | None = None
    for branch in branches:
        if waiting is not None and alike(waiting, branch):
            first = waiting.name.partition("-")[0]
            name, repeats = f"{first}-{branch.name}", waiting.repeats + 1
            waiting = replace(waiting, name=name, repeats=repeats)
            continue
        if waiting is not None:
            yield waiting
        waiting = branch
    if waiting is not None:
        yield waiting


def alike(one: Branch, other: Branch) -> bool:
    """Whether two neighbors are numbered modules that are built and trained the same way."""
    numbered = one.name.partition("-")[0].isdigit() and other.name.isdigit()
    return numbered and replace(one, name="", repeats=1) == replace(other, name="")


def told(branch: Branch) -> str:
    """A branch as a line: name, class, shapes, weights and what of them trains."""
    times = f" x{branch.repeats}" if branch.repeats > 1 else ""
    shapes = " + ".join("x".join(map(str, weight.shape)) for weight in branch.weights)
    kind = f"{branch.kind}({shapes})" if shapes else branch.kind
    return f"{branch.name}{times}  {kind}  {branch.total:,}  {training_of(branch)}"


def training_of(branch: Branch) -> str:
    """What of a branch trains, in words."""
    if branch.trainable:
        return "trains" if branch.trainable == branch.total else f"{branch.trainable:,} train"
    if branch.total:
        return "frozen"
    return "shared with one above"


def show_tree(recipe: "Recipe", as_json: bool) -> None:
    """Print the modules of the recipe's adapted model."""
    tree = module_tree(recipe)
    if as_json:
        print(json.dumps(tree.nested(), indent=1))
    else:
        print_tree(tree)


def print_tree(branch: Branch) -> None:
    """Print by rich on a terminal, indented elsewhere."""
    if not sys.stdout.isatty():
        for line in lines(branch):
            print(line)
        return
    from rich.console import Console

    Console().print(drawn(branch))


def lines(branch: Branch, depth: int = 0) -> Iterator[str]:
    """The tree as text, two spaces deeper for each step down."""
    yield f"{'  ' * depth}{told(branch)}"
    for inner in branch.below:
        yield from lines(inner, depth + 1)


def drawn(branch: Branch) -> "Tree":
    """The tree as rich draws it; what trains is bold."""
    from rich.text import Text
    from rich.tree import Tree

    made = Tree(Text(told(branch), style="bold" if branch.trainable else ""))
    made.children = [drawn(inner) for inner in branch.below]
    return made
