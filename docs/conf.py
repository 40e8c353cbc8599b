"""Configuration of the documentation site. Building it needs no network."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "peftkit"
author = "the peftkit authors"
copyright = "2026, the peftkit authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "peftkit"
html_extra_path = ["llms.txt"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
pygments_style = "sphinx"


def setup(app):
    """Write the reference of recipes before pages are read; read docstrings as Markdown code."""
    from settings_reference import write

    app.connect("builder-inited", lambda _: write(HERE / "reference.md"))
    app.connect("autodoc-process-docstring", code_spans)


def code_spans(app, what, name, thing, options, lines):
    """Turn `code` into ``code``: docstrings use one backtick, reStructuredText two."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", "\n".join(lines))
    lines[:] = text.split("\n")
