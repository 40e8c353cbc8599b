"""A chart from outside the package: one file with one function."""

import json
from pathlib import Path

import pytest
from test_report import some_runs

from peftkit.errors import RecipeError
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.render import chart as registry
from peftkit.reporting.render.chart import Chart, chart
from support.commands import peftkit as command

PLUGIN = '''
import altair as alt

from peftkit.reporting.render.chart import Chart, chart


@chart("score_by_steps", missing="No steps.")
def score_by_steps(report):
    """The score of each strategy against its optimizer steps."""
    rows = [
        {"n": n, "label": each.label, "steps": each.steps, "score": each.mean}
        for n, each in enumerate(report.strategies)
        if each.mean is not None
    ]
    drawing = alt.Chart(alt.NamedData("rows")).mark_point().encode(x="steps:Q", y="score:Q")
    columns = {"strategy": "label", "steps": "steps", "score": "score"}
    return Chart("Score by steps", "A point for each strategy.", drawing, rows, columns)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    some_runs(tmp_path / "runs", 2, full=0.85, lora=0.8)
    (tmp_path / "own_charts.py").write_text(PLUGIN)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    """The output of a command that finds the plug-in on the path."""
    return command(*arguments, cwd=folder, PYTHONPATH=str(folder)).stdout


def test_a_chart_of_a_plugin_is_in_the_page_a_file_and_the_list(folder: Path) -> None:
    listed = run(folder, "list", "charts", "--plugin", "own_charts")
    assert "score_by_steps\tThe score of each strategy against its optimizer steps." in listed
    assert "score_by_steps" not in run(folder, "list", "charts")
    printed = run(folder, "report", "runs", "--to", "out", "--plugin", "own_charts")
    assert "out/charts/score_by_steps.svg" in printed
    assert "Score by steps" in (folder / "out" / "charts" / "score_by_steps.svg").read_text()
    page = (folder / "out" / "report.html").read_text()
    assert '<div class="drawing" id="drawing-score_by_steps">' in page
    assert "A point for each strategy." in page
    data = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    [own] = [each for each in json.loads(data) if each["name"] == "score_by_steps"]
    assert [row["label"] for row in own["specification"]["datasets"]["rows"]] == ["full", "lora"]


def test_two_charts_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "CHARTS", {})

    def first(report: ReportData) -> Chart | None:
        return None

    def second(report: ReportData) -> Chart | None:
        return None

    assert chart("twice")(first) is first and chart("twice")(first) is first
    with pytest.raises(RecipeError, match="are both called 'twice' - rename one"):
        chart("twice")(second)
    with pytest.raises(RecipeError, match=r"'\.\./x' is no name for a file"):
        chart("../x")(first)
