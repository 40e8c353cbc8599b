"""Writing: a report's files, each at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.reporting.render.charts import NAMES, pictures
from peftkit.reporting.render.markdown import markdown, sheet
from peftkit.reporting.render.page import page
from peftkit.reporting.render.picture import png
from peftkit.reporting.render.svg import Drawing
from peftkit.storage.atomic_files import explain_disk_errors, write_bytes, write_text

if TYPE_CHECKING:
    from peftkit.reporting.analysis.results import ReportData


def write_report(report: ReportData, folder: Path, as_png: bool, drawing: Drawing) -> list[Path]:
    """Write tables, page and pictures into `folder`; returns their paths in that order."""
    drawn = pictures(report)
    svgs = drawing.svgs([picture.alone() for picture in drawn])
    texts = {
        "report.md": markdown(report),
        "report.csv": sheet(report),
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.html": page(report, drawn),
    }
    for picture, svg in zip(drawn, svgs.result(), strict=True):
        texts[f"pictures/{picture.name}.svg"] = svg
    with explain_disk_errors(folder, "--to"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pictures").mkdir(exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
        paths = [folder / name for name in texts]
        for path in [path for path in paths if as_png and path.suffix == ".svg"]:
            beside = path.with_suffix(".png")
            write_bytes(beside, png(path.read_text(encoding="utf-8")))
            paths.append(beside)
        for stale in stale_pictures(folder, paths):
            stale.unlink()
    return paths


def stale_pictures(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Pictures of an earlier report in the same folder, which this one does not have."""
    names = [f"{name}.{ending}" for name in NAMES for ending in ("svg", "png")]
    there = [folder / "pictures" / name for name in names]
    return [path for path in there if path.is_file() and path not in written]
