"""A report's charts and what they are drawn of: right numbers, few enough points, safe files."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_page import HOSTILE, hostile_runs, whole_runs

from peftkit.reporting.analysis.prediction_files import read_predictions
from peftkit.reporting.render.chart import CHARTS, draw_charts, missing_charts
from peftkit.reporting.render.page import page, safe_json
from peftkit.reporting.report import Report, report
from support.commands import ROOT, python
from support.commands import peftkit as command

RECORDS = ROOT / "benchmarks" / "records" / "imdb_first"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report that has every chart."""
    return report(whole_runs(tmp_path_factory.mktemp("charts") / "runs"))


def predictions(strategy: str) -> np.ndarray:
    """What each seed of a strategy answers to each row."""
    tables = [read_predictions(path, False)[0] for path in sorted(RECORDS.glob(f"{strategy}_*"))]
    return np.stack([np.array(t["predicted"].to_pylist()) for t in tables if t is not None])


def test_a_curve_has_the_mean_and_the_ends_of_the_seeds(tmp_path: Path) -> None:
    whole_runs(tmp_path / "runs")
    for number, folder in enumerate(sorted((tmp_path / "runs").glob("full_*"))):
        scores = {10: 0.5 + number / 10, 20: 0.7, **({30: 0.9} if number == 0 else {})}
        lines = [{"step": 10, "eval_score": 0.1}, {"step": 5, "loss": 1.0}]  # before a resume
        lines += [{"step": s, "eval_score": score} for s, score in scores.items()]
        lines.append({"step": 40, "eval_score": float("nan")})
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = next(c for c in report(tmp_path / "runs").curves if c.label == "full")
    first, second, third = curve.points
    assert (first.step, first.low, first.mean, first.high) == (10, 0.5, pytest.approx(0.6), 0.7)
    assert (second.low, second.high, second.seeds) == (0.7, 0.7, 3)
    assert (third.step, third.mean, third.seeds) == (30, 0.9, 1)


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    whole_runs(tmp_path / "runs")
    for folder in (tmp_path / "runs").glob("full_*"):
        lines = [json.dumps({"step": s, "eval_score": 0.5}) + "\n" for s in range(1, 1000)]
        (folder / "log.jsonl").write_text("".join(lines))
    curve = next(c for c in report(tmp_path / "runs").curves if c.label == "full")
    assert len(curve.points) == 200 and curve.points[-1].step == 999


def test_confusions_are_summed_over_seeds(found: Report) -> None:
    lora = next(each for each in found.confusions if each.label == "lora")
    paths = sorted(RECORDS.glob("lora_*/record.json"))
    matrices = [json.loads(path.read_text())["details"]["confusion"] for path in paths]
    assert lora.counts == np.sum(matrices, axis=0).tolist() and lora.seeds == 3
    assert lora.names == ["neg", "pos"] and sum(map(sum, lora.counts)) == 6000


@pytest.mark.parametrize("said", [None, "x", [[1, 2]], [[1, 2], [3]], [[1, 2], [3, -4]], [1, 2]])
def test_a_confusion_matrix_that_is_none_is_left_out(said: Any, tmp_path: Path) -> None:
    whole_runs(tmp_path / "runs")
    for path in (tmp_path / "runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["details"]["confusion"] = said
        path.write_text(json.dumps(record))
    assert report(tmp_path / "runs").confusions == []


def test_disagreement_is_the_share_of_rows_that_two_runs_answer_differently(found: Report) -> None:
    told = found.disagreement
    assert told is not None and told.rows == 2000 and told.labels[0] == "full"
    full, adapter = predictions("full"), predictions("adapter")
    place = told.labels.index("adapter")
    expected = np.mean([(one != two).mean() for one in full for two in adapter])
    assert told.shares[0][place] == told.shares[place][0] == pytest.approx(expected)
    own = np.mean([(full[i] != full[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert told.shares[0][0] == pytest.approx(own)


def test_disputed_rows_are_those_on_which_strategies_differ(found: Report) -> None:
    told = found.disagreement
    assert told is not None and len(told.disputed) == 20
    table, _ = read_predictions(sorted(RECORDS.glob("full_*"))[0], False)
    assert table is not None
    rows = table["row"].to_pylist()
    for row in told.disputed:
        assert sum(row.answers.values()) == pytest.approx(1) and len(row.answers) == 2
        wrong = (predictions("full")[:, rows.index(row.row)] != row.label).mean() > 0.5
        assert ("full" in row.wrong) == wrong and 0 < len(row.wrong) < 5


def test_one_seed_has_no_disagreement_with_itself_and_one_strategy_none_at_all() -> None:
    first = [sorted(RECORDS.glob(f"{name}_*"))[0] for name in ("full", "lora")]
    told = report(first).disagreement
    assert told is not None and told.shares[0][0] is None and told.shares[0][1] is not None
    assert report(sorted(RECORDS.glob("full_*"))).disagreement is None


def test_a_search_is_drawn_with_the_chosen_rate_marked(found: Report) -> None:
    drawn = next(each for each in draw_charts(found) if each.name == "rate_search")
    lora = [row for row in drawn.rows if row["label"] == "lora"]
    assert [row["chosen"] for row in lora] == ["finished", "chosen", "pruned", "failed"]
    assert "5 failed and have no score" in drawn.caption


def test_pictures_without_data_are_left_out_and_said(tmp_path: Path) -> None:
    bare = report(RECORDS)
    names = {each.name for each in draw_charts(bare)}
    assert not names & {"learning_curves", "rate_search"} and "confusion" in names
    said = missing_charts(draw_charts(bare))
    assert len(said) == 2 and said[0].startswith("No learning curves: there is no log next to")
    assert said[0] in page(bare, draw_charts(bare))
    assert missing_charts(draw_charts(report(whole_runs(tmp_path / "x")))) == []


def many(found: Report, number: int) -> Report:
    """A report of many strategies, each with two seeds."""
    base = found.strategies[0]
    summaries = [
        base.model_copy(
            update={"label": f"full r={n}", "trainable": 1000 + n, "mean": 0.9 - n / 9999}
        )
        for n in range(number)
    ]
    gone = {"disagreement": None, "confusions": [], "searches": []}
    curves = [found.curves[0].model_copy(update={"label": each.label}) for each in summaries]
    return found.model_copy(
        update={"strategies": summaries, "curves": curves, "reference": "full r=0", **gone}
    )


def test_a_thousand_strategies_are_thinned_with_a_word_and_fit_the_page(found: Report) -> None:
    large = many(found, 1000)
    drawn = {each.name: each for each in draw_charts(large)}
    assert len(drawn["score_by_parameters"].rows) == 100
    assert drawn["score_by_parameters"].remarks[0].startswith("100 of 1,000 strategies are shown")
    assert drawn["learning_curves"].remarks == ["Only the best 6 strategies by mean are shown."]
    assert len(page(large, list(drawn.values()))) < 4 * 2**20


def test_a_strategy_that_trains_nothing_has_no_place_on_a_logarithmic_axis(found: Report) -> None:
    none = [each.model_copy(update={"trainable": 0}) for each in found.strategies[:1]]
    changed = found.model_copy(update={"strategies": none + found.strategies[1:]})
    drawn = next(each for each in draw_charts(changed) if each.name == "score_by_parameters")
    assert len(drawn.rows) == 4 and "without trainable weights" in drawn.remarks[0]


def test_without_an_interval_the_deviation_is_drawn_and_called_so(found: Report) -> None:
    bare = [each.model_copy(update={"low": None, "high": None}) for each in found.strategies]
    drawn = draw_charts(found.model_copy(update={"strategies": bare}))[0]
    assert {row["interval"] for row in drawn.rows} == {"± one standard deviation"}
    assert "one standard deviation over seeds, not an interval" in drawn.caption


def test_axes_end_where_scores_do(found: Report) -> None:
    high = {"mean": 0.99, "low": 0.97, "high": 1.004}
    best = [found.strategies[0].model_copy(update=high), *found.strategies[1:]]
    curve = found.curves[0]
    top = [curve.points[-1].model_copy(update={"mean": 1.0, "low": 0.99, "high": 1.0})]
    curves = [curve.model_copy(update={"points": [*curve.points[:-1], *top]}), *found.curves[1:]]
    drawn = draw_charts(found.model_copy(update={"strategies": best, "curves": curves}))
    domains = {
        each.name: [
            layer["encoding"]["y"]["scale"]["domain"]
            for layer in each.plain.get("spec", each.plain)["layer"]
            if "scale" in layer["encoding"].get("y", {})
        ]
        for each in drawn
        if each.name.startswith(("score", "learning", "rate"))
    }
    assert domains.pop("rate_search") is not None and len(domains) == 4
    for found_domains in domains.values():
        assert found_domains and all(0 <= low < high <= 1 for low, high in found_domains)
    assert domains["learning_curves"][0][1] == 1


def test_names_beside_points_do_not_cover_each_other(found: Report) -> None:
    drawn = draw_charts(many(found, 12))[0]  # all in one place
    heights = sorted(row["name_at"] for row in drawn.rows if row["name"])
    ends = [row[key] for row in drawn.rows for key in ("low", "high", "score")]
    line = 13 / 320 * (max(ends) - min(ends))
    assert len(heights) > 2 and min(b - a for a, b in pairwise(heights)) > 0.9 * line
    assert "Names that do not fit are in the table below." in drawn.remarks
    assert all(row["name"] for row in draw_charts(found)[0].rows)


def test_pictures_are_files_that_hold_their_words(tmp_path: Path) -> None:
    report(hostile_runs(tmp_path / "runs"), allow_mixed=True).write(tmp_path / "out", png=True)
    files = sorted((tmp_path / "out" / "charts").glob("*.svg"))
    assert len(files) == 7
    for file in files:
        root = ElementTree.parse(file).getroot()
        words = "".join(root.itertext())
        assert "var(--" not in file.read_text() and not list(root.iter("{*}script"))
        assert "<script>" in words or file.stem.startswith("score")
        assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_an_earlier_report_do_not_stay_beside_another(
    found: Report, tmp_path: Path
) -> None:
    found.write(tmp_path, png=True)
    (tmp_path / "charts" / "mine.svg").touch()
    report(RECORDS).write(tmp_path)
    left = sorted(path.name for path in (tmp_path / "charts").iterdir())
    names = ["confusion", "disagreement", "mine"]
    names += [f"score_by_{cost}" for cost in ("memory", "parameters", "time")]
    assert left == [f"{name}.svg" for name in names]
    assert {each.name for each in draw_charts(found)} == set(CHARTS)


def test_json_in_the_page_cannot_end_its_element() -> None:
    text = safe_json({"name": HOSTILE, "line": "\u2029"})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text)["name"] == HOSTILE


def test_a_page_is_the_same_where_no_cache_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from peftkit.reporting.render.vega import bundle; print(len(bundle()))"
    first, second = (
        python("-c", code, cwd=tmp_path, PEFTKIT_CACHE=str(tmp_path / cache))
        for cache in ("file/none", "cache")
    )
    assert first.stdout == second.stdout and int(first.stdout) > 500_000, first.stderr
    assert len(list((tmp_path / "cache" / "vega").iterdir())) == 1


def test_the_verb_writes_png_where_asked(tmp_path: Path) -> None:
    records = str(RECORDS)
    wrong = command("report", records, "--png", cwd=tmp_path)
    assert wrong.returncode == 2 and "set their directory with --to" in wrong.stderr
    done = command("report", records, "--to", "out", "--png", cwd=tmp_path)
    assert "out/report.html" in done.stdout and "out/charts/confusion.png" in done.stdout
