"""Greedy texts held against each other: what is the same, what parts at a tie, what differs."""

from peftkit.merging.verification.greedy import Answer, compare, first_difference

ONE = Answer([5, 6, 2], "a b", True)


def never(row: int, step: int, token: int) -> bool:
    return False


def test_texts_are_equal_only_with_the_same_ends() -> None:
    longer = Answer([5, 6], "a b", False)
    found = compare([ONE, ONE, longer], [ONE, longer, longer], never)
    assert (found.prompts, found.equal, found.near_ties, found.ended) == (3, 2, 0, 2)
    assert found.different == [2]


def test_a_text_that_goes_on_where_the_other_ends_is_no_tie() -> None:
    beyond = Answer([5, 6, 2, 7], "a b c", False)
    assert first_difference(ONE.tokens, beyond.tokens) is None
    assert compare([ONE], [beyond], lambda *_: True).different == [1]


def test_a_text_that_parts_is_a_tie_where_the_run_says_so_of_the_token_it_parts_at() -> None:
    other = Answer([5, 9, 9], "a x x", False)
    asked: list[tuple[int, int, int]] = []

    def is_tie(row: int, step: int, token: int) -> bool:
        asked.append((row, step, token))
        return row == 0

    found = compare([ONE, ONE], [other, other], is_tie)
    assert asked == [(0, 1, 9), (1, 1, 9)]
    assert (found.equal, found.near_ties, found.different) == (0, 1, [2])
