"""The messages that troubleshooting.md explains are those of the code."""

import ast
import re
from collections.abc import Iterator

from support.doc_blocks import ROOT

PLACEHOLDER = re.compile(r"\.\.\.|\bNAME\b|\b[NMXY]\b|'[^']*'|\bRECIPE\b")


def literals(tree: ast.AST) -> Iterator[str]:
    """The constant parts of every string in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_quoted_messages_are_in_the_code() -> None:
    sources = [path.read_text() for path in (ROOT / "peftkit").rglob("*.py")]
    code = "\n".join(text for source in sources for text in literals(ast.parse(source)))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [
        message
        for line in page.splitlines()
        if line.startswith("| ")
        for message in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(quoted) > 20
    absent = [
        f"{message}: {part}"
        for message in quoted
        for part in map(str.strip, PLACEHOLDER.split(message))
        if len(part) > 3 and part not in code
    ]
    assert absent == []
