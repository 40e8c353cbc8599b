"""The README's own data story with the model that it names, and tables that list everything."""

import re
from pathlib import Path

import pytest

from support.doc_blocks import ROOT, blocks_of, run_shell, write_reviews


@pytest.mark.slow
@pytest.mark.network
def test_the_own_data_story_runs_with_the_model_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    [block] = [b for b in blocks_of(ROOT / "README.md") if "peftkit new" in b.code]
    done = [run_shell(command) for command, _ in block.commands()]
    assert [code for code, _ in done] == [0] * 5, [output[-2000:] for _, output in done]
    assert "text_classification" in done[0][1]
    assert done[3][1].split("\t")[0] in ("sport", "food")


def test_every_dependency_has_its_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional")[0]
    declared = re.findall(r'^    "([A-Za-z_-]+)[<>=]', project, re.M)
    table = (ROOT / "docs" / "install.md").read_text().partition("## Dependencies")[2]
    assert [name for name in declared if name not in table] == []


def test_the_docs_list_every_strategy_with_its_own_learning_rate() -> None:
    from peftkit.strategies.base import Strategy

    page = (ROOT / "docs" / "strategies.md").read_text()
    table = page[page.index("<!-- table: kinds -->") :]
    rates = dict(re.findall(r"^\| `([\w+]+)` \|[^|]*\| (\S*) ?\|", table, flags=re.M))
    names = {*Strategy.kinds(), *Strategy.all_aliases()}
    assert rates.keys() == names
    for name in names - {"combination", "peft"}:  # these need settings
        assert float(rates[name]) == Strategy.parse(name, "strategy").default_lr, name
        assert f"`{name}`" in page[: page.index("<!-- table: kinds -->")], name
