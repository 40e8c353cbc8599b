"""Correction of p-values for multiple tests, and groups that do not differ significantly.

scipy and statsmodels have Holm's correction without weights only.
"""

from collections.abc import Iterator, Sequence

MOST_GROUPS = 100
"""Number of overlapping groups beyond which letters are of no use."""


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """p-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    `weights` are the shares of the error rate (his section on unequal importance; default: equal).
    """
    shares = list(weights) if weights is not None else [1.0] * len(p_values)
    corrected, largest, left = [0.0] * len(p_values), 0.0, sum(shares)
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i]):
        largest = max(largest, min(1.0, p_values[index] * left / shares[index]))
        corrected[index], left = largest, left - shares[index]
    return corrected


def groups(alike: Sequence[set[int]]) -> list[list[int]] | None:
    """The maximal groups in which no two members differ; None if there are too many.

    `alike[i]` are the members that do not differ from i. Members are ordered from the best, and
    groups by their best members.
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
    """Maximal cliques by the Bron-Kerbosch algorithm with a pivot (CACM 16, 1973)."""
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
    """The groups of each member as letters (compact letter display)."""
    named = ["" for _ in range(members)]
    for number, group in enumerate(found):
        for member in group:
            named[member] += letter(number)
    return named


def letter(number: int) -> str:
    """a, b, ..., z, then a2, b2, ..."""
    again, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(again + 1) if again else "")
