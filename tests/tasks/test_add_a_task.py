"""A plug-in of one file adds a task with its metric and its baseline, from training to report."""

import json
from pathlib import Path

from support.commands import ROOT
from support.run_processes import command

PLUG_IN = '''
"""Ratings: classes in an order, scored by how far predictions are from the right class."""

from collections import Counter
from typing import ClassVar, Literal

import numpy as np

from peftkit.metrics.registry import Metric, register
from peftkit.tasks.base import Task
from peftkit.text.pairs import encode_texts

register(Metric("distance", "mean distance of predicted and right class", False, (0, float("inf"))))


class Rating(Task):
    """Which of the ordered classes a text is of."""

    kind: Literal["rating"] = "rating"
    roles = {"text": True, "label": True}
    inputs = ("text",)
    peft_type = "SEQ_CLS"
    pipeline_tag = "text-classification"
    problem_type = "single_label_classification"
    trains_head = True
    headline: ClassVar[str] = "distance"

    def label_names(self, splits):
        return tuple(sorted(set(splits.train["label"])))

    def auto_class(self, config=None):
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def encode(self, rows, tokenizer, names, max_length):
        columns = encode_texts(rows, tokenizer, max_length)
        labels = rows.get("label", [None] * len(columns["input_ids"]))
        return {**columns, "labels": [-100 if y is None else names.index(y) for y in labels]}

    def loss(self, logits, labels, smoothing):
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)

    def outputs(self, logits, labels, sizes):
        return list(logits.float().softmax(dim=-1).cpu().numpy())

    def answers(self, predictions, given):
        return [{"label": given.names[int(p.argmax())]} for p in predictions.outputs]

    def baseline_answers(self, given):
        usual = Counter(given.train["label"]).most_common(1)[0][0]
        return {"most frequent": [{"label": usual}] * len(given.rows)}

    def counts(self, answers, given):
        place = list(given.names).index
        pairs = zip(answers, given.rows["label"], strict=True)
        return np.array([[abs(place(a["label"]) - place(y)), 1.0] for a, y in pairs])

    def totals(self, sums, names):
        return {"distance": sums[:, 0] / sums[:, 1]}
'''


def test_one_file_adds_a_task_its_metric_its_baseline_and_its_row_in_a_report(
    tmp_path: Path,
) -> None:
    (tmp_path / "rating.py").write_text(PLUG_IN)
    places = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def peftkit(*arguments: str) -> str:
        done = command(tmp_path, "-m", "peftkit.cli", *arguments, environment=places, seconds=400)
        assert done.code == 0, done.said
        return done.said

    quick = ("plugins=[rating]", "task=rating", "data.rows=120", "training.epochs=1")
    for strategy in ("lora", "bitfit"):
        peftkit("train", "lora_tiny", f"strategy={strategy}", "training.proof=run", *quick)
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("runs/*/record.json"))]
    for record in records:
        assert record["headline"] == "distance" and set(record["baselines"]) == {"most frequent"}
        score, baseline = record["scores"]["distance"], record["baseline"]["distance"]
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1 and baseline["value"] > 0
    peftkit("report", "runs", "--to", "report", "--reference", "bitfit")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "distance" in text and "most frequent" in text
    for record in records:
        assert f"{record['scores']['distance']['value']:.4f}" in text
