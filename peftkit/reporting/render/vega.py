"""Vega: the library that draws the charts in a page, as vl-convert bundles it."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version

from peftkit.hub.source import cache_folder
from peftkit.storage.atomic_files import write_text

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that names `vegaEmbed`.

    Made once for a version of vl-convert, for that takes two seconds, and kept in peftkit's cache.
    """
    kept = cache_folder() / "vega" / f"vl-convert-{version('vl-convert-python')}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    import vl_convert

    made = inlined(str(vl_convert.javascript_bundle(SNIPPET)))
    # the page is the same without the cache, only later
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, made)
    return made


def inlined(script: str) -> str:
    """`script` without what would end or hide a script element; equal within JavaScript strings."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
