"""The module tree of an adapted model: classes, shapes, weights and what is trained."""

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
"""PEFT's copy of the original head, next to the trained one; a head counts once."""


@dataclass(frozen=True)
class Weight:
    """A parameter of a module."""

    name: str
    shape: tuple[int, ...]
    count: int
    """Number of weights; 0 if it is shared with an earlier one in the tree."""
    trains: bool


@dataclass(frozen=True)
class Branch:
    """A module with parameters, or several consecutive equal ones."""

    name: str
    """Its name in its parent, or '0-5' for several; a chain of only children has one name."""
    kind: str
    """Its class."""
    weights: tuple[Weight, ...]
    """Its own parameters."""
    below: tuple["Branch", ...]
    repeats: int = 1
    """The number of modules it represents."""

    @property
    def total(self) -> int:
        """All weights in it, repeats included."""
        own = sum(weight.count for weight in self.weights)
        return self.repeats * (own + sum(branch.total for branch in self.below))

    @property
    def trainable(self) -> int:
        """The trainable ones among them."""
        own = sum(weight.count for weight in self.weights if weight.trains)
        return self.repeats * (own + sum(branch.trainable for branch in self.below))

    def nested(self) -> dict[str, Any]:
        """The branch as nested dicts, for JSON."""
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
    """The module tree of the recipe's adapted model, from its configuration; its totals equal the
    plan's."""
    from peftkit.planning.plan import load_meta_model

    module, _, _ = load_meta_model(recipe)
    return replace(branch_of("", module, set()), name=recipe.model)


def branch_of(name: str, module: "nn.Module", seen: set[int]) -> Branch:
    """The branch of `module`; `seen` are ids of parameters that are in the tree already."""
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
    """The branches, with consecutive ones that differ only in their number as one."""
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
    """Whether two neighbors are numbered modules of the same structure."""
    numbered = one.name.partition("-")[0].isdigit() and other.name.isdigit()
    return numbered and replace(one, name="", repeats=1) == replace(other, name="")


def format_branch(branch: Branch) -> str:
    """A branch as one line: name, class, shapes, number of weights, and what is trained."""
    times = f" x{branch.repeats}" if branch.repeats > 1 else ""
    shapes = " + ".join("x".join(map(str, weight.shape)) for weight in branch.weights)
    kind = f"{branch.kind}({shapes})" if shapes else branch.kind
    return f"{branch.name}{times}  {kind}  {branch.total:,}  {training_of(branch)}"


def training_of(branch: Branch) -> str:
    """What is trained of a branch."""
    if branch.trainable:
        return (
            "trainable" if branch.trainable == branch.total else f"{branch.trainable:,} trainable"
        )
    if branch.total:
        return "frozen"
    return "shared with an earlier one"


def show_tree(recipe: "Recipe", as_json: bool) -> None:
    """Print the module tree of the recipe's adapted model."""
    tree = module_tree(recipe)
    if as_json:
        print(json.dumps(tree.nested(), indent=1))
    else:
        print_tree(tree)


def print_tree(branch: Branch) -> None:
    """Print with rich on a terminal, else as indented text."""
    if not sys.stdout.isatty():
        for line in lines(branch):
            print(line)
        return
    from rich.console import Console

    Console().print(rich_tree(branch))


def lines(branch: Branch, depth: int = 0) -> Iterator[str]:
    """The tree as text, indented by two spaces per level."""
    yield f"{'  ' * depth}{format_branch(branch)}"
    for inner in branch.below:
        yield from lines(inner, depth + 1)


def rich_tree(branch: Branch) -> "Tree":
    """The tree for rich; trainable branches are bold."""
    from rich.text import Text
    from rich.tree import Tree

    made = Tree(Text(format_branch(branch), style="bold" if branch.trainable else ""))
    made.children = [rich_tree(inner) for inner in branch.below]
    return made
