"""The predictions that a report reads."""

import json
from pathlib import Path

from peftkit.reporting.analysis.prediction_files import read_predictions

ROW = {"row": "test.csv:0", "hash": "00ff", "label": "no", "predicted": "yes"}


def test_probabilities_are_read_where_requested(tmp_path: Path) -> None:
    line = json.dumps({**ROW, "probabilities": [0.25, 0.75], "more": "x"})
    (tmp_path / "predictions.jsonl").write_text(line + "\n")
    table, problem = read_predictions(tmp_path, True)
    assert table is not None and problem == ""
    assert table["probabilities"].to_pylist() == [[0.25, 0.75]]
    plain, _ = read_predictions(tmp_path, False)
    assert plain is not None and plain.to_pylist() == [ROW]
