"""Writes the files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.reporting.render.chart import draw_charts, registered_charts
from peftkit.reporting.render.markdown import csv_table, markdown
from peftkit.reporting.render.page import page
from peftkit.storage.atomic_files import explain_disk_errors, write_bytes, write_text

if TYPE_CHECKING:
    from peftkit.reporting.analysis.results import ReportData

FOLDERS = ("charts", "pictures")
"""Where charts are, and where earlier versions wrote them."""


def write_report(report: ReportData, folder: Path, as_png: bool) -> list[Path]:
    """Write tables, page and charts into `folder`; returns their paths in that order."""
    charts = draw_charts(report)
    texts = {
        "report.md": markdown(report),
        "report.csv": csv_table(report),
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.html": page(report, charts),
        **{f"charts/{chart.name}.svg": chart.svg() for chart in charts},
    }
    with explain_disk_errors(folder, "--to"):
        (folder / "charts").mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
        paths = [folder / name for name in texts]
        for path in [path for path in paths if as_png and path.suffix == ".svg"]:
            write_bytes(path.with_suffix(".png"), png(path.read_text(encoding="utf-8")))
            paths.append(path.with_suffix(".png"))
        for stale in stale_charts(folder, paths):
            stale.unlink()
    return paths


def png(svg: str) -> bytes:
    """An SVG as a PNG at twice its size."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=2))


def stale_charts(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Charts of an earlier report in the same directory that this one does not have."""
    names = [f"{name}.{ending}" for name in registered_charts() for ending in ("svg", "png")]
    found = [folder / charts / name for charts in FOLDERS for name in names]
    return [path for path in found if path.is_file() and path not in written]
