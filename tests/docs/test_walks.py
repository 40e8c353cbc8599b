"""The walks through the code in CONTRIBUTING.md: files exist, hold the names, call each other."""

import re

import pytest

from support.doc_blocks import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize(("walk", "most"), [("loss", 6), ("merge", 5)])
def test_a_walk_is_short_and_its_files_hold_what_it_names(walk: str, most: int) -> None:
    steps = TEXT.partition(f"<!-- walk: {walk} -->")[2].strip().partition("\n\n")[0].splitlines()
    assert 1 < len(steps) <= most
    sources = []
    for step in steps:
        file, *names = re.findall(r"`([^`]+)`", step)
        source = (ROOT / file).read_text()
        sources.append(source)
        for name in names:
            for part in re.findall(r"\w+", name.removeprefix("transformers.")):
                assert re.search(rf"\b{part}\b", source), f"{file} has no {part}"
    for before, step in zip(sources, steps[1:], strict=False):
        entry = re.findall(r"`([^`]+)`", step)[1].rpartition(".")[2]
        called = entry if walk == "loss" else ""
        reached = (called, "loss", "COMMANDS", "merge", "write_shards", "prepare")
        assert any(name and re.search(rf"\b{name}\b", before) for name in reached), step


def test_the_last_lines_of_the_walks_are_there() -> None:
    loss = (ROOT / "peftkit/tasks/text_classification.py").read_text()
    assert "cross_entropy" in loss
    assert "rows.add_(" in (ROOT / "peftkit/deltas/base.py").read_text()
