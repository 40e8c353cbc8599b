"""Families of tests: p-values corrected for their number, and groups that can't be told apart."""

from collections.abc import Iterator, Sequence

MOST_GROUPS = 100
"""Overlapping groups beyond which letters say nothing."""


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Holm's step-down correction, in their order (Scandinavian Journal of Statistics 6, 1979).

    `weights` share the errors out, as in his section on unequal importance; default: alike.
    """
    shares = list(weights) if weights is not None else [1.0] * len(p_values)
    corrected, largest, left = [0.0] * len(p_values), 0.0, sum(shares)
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i]):
        largest = max(largest, min(1.0, p_values[index] * left / shares[index]))
        corrected[index], left = largest, left - shares[index]
    return corrected


def groups(alike: Sequence[set[int]]) -> list[list[int]] | None:
    """The largest groups in which no two members differ; None where there are too many to be told.

    `alike[i]` are the members that cannot be told from i, which comes before the others where it is
    better: groups are ordered by their best members.
    """
    found: list[list[int]] = []
    for clique in cliques(set(), set(range(len(alike))), set(), alike):
        found.append(sorted(clique))
        if len(found) > MOST_GROUPS:
            return None
    return sorted(found)


def cliques(
    chosen: set[int], possible: set[int], done: set[int], alike: Sequence[set[int]]
) -> Iterator[set[int]]:
    """Maximal cliques (Bron and Kerbosch, Communications of the ACM 16, 1973, with a pivot)."""
    if not possible and not done:
        yield chosen
        return
    if not possible:
        return
    pivot = max(possible | done, key=lambda each: len(alike[each] & possible))
    for each in sorted(possible - alike[pivot]):
        near = alike[each]
        yield from cliques(chosen | {each}, possible & near, done & near, alike)
        possible = possible - {each}
        done = done | {each}


def letters(members: int, found: Sequence[Sequence[int]]) -> list[str]:
    """The groups of each member as letters: a compact letter display."""
    named = ["" for _ in range(members)]
    for number, group in enumerate(found):
        for member in group:
            named[member] += letter(number)
    return named


def letter(number: int) -> str:
    """a, b, ..., z, then a2, b2, ..."""
    again, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(again + 1) if again else "")
