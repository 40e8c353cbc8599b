"""Learning curves are valid SVG with accessible descriptions, drawn only if there are values."""

import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peftkit.runs.learning_curves import INK, draw_learning_curves

LOG = [
    {"step": 10, "loss": 0.7, "lr": 1e-3},
    {"step": 20, "loss": 0.5},
    {"step": 20, "eval_loss": 0.6, "eval_score": 0.75},
    {"step": 30, "loss": 0.4},
    {"step": 40, "eval_loss": 0.55, "eval_score": 0.8},
]


def texts(file: Path) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.parse(file).iter() if e.tag.endswith("text")]


def marks(file: Path, color: str) -> list[str]:
    """The text for screen readers of each point of that color."""
    elements = list(ElementTree.parse(file).iter())
    told = [e for e in elements if e.get("aria-roledescription") == "point"]
    return [e.attrib["aria-label"] for e in told if (e.get("fill") or "").upper() == color]


def lines(file: Path) -> dict[str, str]:
    """The dashes of each line by its color."""
    found = ElementTree.parse(file).iter()
    drawn = [e for e in found if e.get("aria-roledescription") == "line mark"]
    return {e.attrib["stroke"].upper(): e.get("stroke-dasharray", "") for e in drawn}


def test_both_files_are_written_and_named(tmp_path: Path) -> None:
    written = draw_learning_curves(LOG, tmp_path / "run")
    assert written == [tmp_path / "run" / "loss.svg", tmp_path / "run" / "scores.svg"]
    assert all(file.is_file() for file in written)


def test_titles_axes_and_curves_are_named_as_text(tmp_path: Path) -> None:
    loss, scores = map(texts, draw_learning_curves(LOG, tmp_path, "accuracy", run="lora_tiny-1234"))
    wanted = {"Loss", "lora_tiny-1234", "cross-entropy (nats)", "training (optimizer steps)"}
    assert wanted | {"training", "validation"} <= set(loss)
    assert {"Validation accuracy", "accuracy (1 is perfect)", "training (optimizer steps)"} <= set(
        scores
    )


def test_every_point_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    loss, scores = draw_learning_curves(LOG, tmp_path)
    assert len(marks(loss, INK["training"])) == 3
    assert len(marks(loss, INK["validation"])) == 2
    first, last = marks(scores, INK["validation"])
    assert ": 20;" in first and "0.75" in first
    assert ": 40;" in last and "0.8" in last


def test_the_curves_differ_by_color_and_by_dash(tmp_path: Path) -> None:
    drawn = lines(draw_learning_curves(LOG, tmp_path)[0])
    assert drawn.keys() == set(INK.values())
    assert len(set(drawn.values())) == 2


def test_what_has_no_points_is_skipped(tmp_path: Path) -> None:
    assert draw_learning_curves([], tmp_path) == []
    only_loss = [{"step": 1, "loss": 0.5}, {"step": 2, "lr": 0.1}, {"loss": 0.4}]
    assert draw_learning_curves(only_loss, tmp_path) == [tmp_path / "loss.svg"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.svg"]


def test_an_undefined_score_is_left_out(tmp_path: Path) -> None:
    log = [{"step": 1, "eval_score": None}, {"step": 2, "eval_score": 0.5}]
    [scores] = draw_learning_curves(log, tmp_path)
    assert len(marks(scores, INK["validation"])) == 1
    assert "Validation score" in texts(scores)


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    [loss] = draw_learning_curves(log, tmp_path)
    assert len(marks(loss, INK["training"])) == 1
    assert draw_learning_curves(log[1:], tmp_path / "diverged") == []


def test_a_long_log_is_a_line_without_marks(tmp_path: Path) -> None:
    log = [{"step": step, "loss": 1 / (step + 1)} for step in range(6000)]
    [loss] = draw_learning_curves(log, tmp_path)
    assert marks(loss, INK["training"]) == []
    assert INK["training"] in lines(loss)


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "a & b \"c\" 'd' ]]>", "datum.step + signal", "f1[neg].x"],
)
def test_hostile_text_stays_text(hostile: str, tmp_path: Path) -> None:
    log = [{"step": 1, "eval_score": 0.5}]
    [scores] = draw_learning_curves(log, tmp_path, headline=hostile, run=hostile)
    assert f"Validation {hostile}" in texts(scores)
    assert hostile in texts(scores)
    assert not any(e.tag.endswith("script") for e in ElementTree.parse(scores).iter())


def test_characters_that_xml_cannot_hold_are_replaced(tmp_path: Path) -> None:
    [loss] = draw_learning_curves(
        [{"step": 1, "loss": 0.5}], tmp_path, run="a\x00b\x1bc\ud800d\ne é"
    )
    assert "a�b�c�d�e é" in texts(loss)


def test_a_title_as_long_as_a_page_does_not_widen_the_picture(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": 0.5}]
    widths = {
        ElementTree.parse(draw_learning_curves(log, tmp_path, run=run)[0]).getroot().attrib["width"]
        for run in ("short", "long " * 500)
    }
    assert len(widths) == 1


def test_importing_curves_imports_no_heavy_library() -> None:
    code = (
        "import sys, peftkit.runs.learning_curves\n"
        "print({'altair', 'vl_convert', 'torch'} & sys.modules.keys())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
