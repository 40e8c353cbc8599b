"""Every code block of the README and the docs is checked, and run where it can run here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.doc_blocks import PAGES, ROOT, Block, blocks_of, check, run, write_reviews

NAMES = [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_name_existing_options_and_valid_settings(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        check(block, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_run_and_print_what_they_show(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.runs and not in_api(block):
            run(block, tmp_path)


def in_api(block: Block) -> bool:
    """Whether `api.md` runs the same Python."""
    return block.page == "README.md" and any(
        block.language == other.language == "python" and block.code in other.code
        for other in blocks_of(ROOT / "docs" / "api.md")
    )


GENERATED = ("reference.md",)
"""Pages that are made when the site is built, which checks the links to them."""


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / n for n in ("SECURITY.md", "CHANGELOG.md"))], ids=lambda p: p.name
)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path not in GENERATED and not link.startswith(("http:", "https:", "mailto:")):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in headings(target), f"{page.name}: {link}"


def test_the_readme_is_short_enough_to_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pages_are_in_the_table_of_contents_and_in_llms_txt() -> None:
    contents = (ROOT / "docs" / "index.md").read_text()
    listed = (ROOT / "docs" / "llms.txt").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "index.md":
            assert re.search(rf"^{page.stem}$", contents, re.M), page.name
            assert f"{page.stem}.html" in listed, page.name


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), "docs", str(tmp_path / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "llms.txt").is_file()
