"""Verdicts: a command of the user's on generated texts, its limits, and pass@k."""

import json
import math
import os
import signal
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import peftkit
from peftkit.errors import RecipeError
from peftkit.evaluation import code_execution
from peftkit.evaluation.baselines.cache import UNTRAINED
from peftkit.evaluation.code_execution import (
    failure_notes,
    grade_predictions,
    resolve_command,
    run_grader,
)
from peftkit.evaluation.scoring import evaluate
from peftkit.hub.resolve import find_model
from peftkit.metrics.text import pass_at, pass_counts, pass_names
from peftkit.tasks.base import EvalSplit, Predictions
from peftkit.tasks.language_modeling.generation_settings import Generation
from support.conversations import QUESTIONS, encoded, made, stirred, talk
from support.run_processes import Zygote, record
from support.task_rows import continued, folder_of, instructed, task_recipe
from support.toy_models import ALONE

RUNS_IT = """
import json, sys
said = json.load(sys.stdin)
try:
    exec(compile(said["text"], "text", "exec"), space := {})
    sys.exit(space["answer"] != int(said["reference"]))
except Exception:
    sys.exit(1)
"""
"""Runs the text as Python: passed where `answer` is what should be."""


def script(folder: Path, code: str) -> list[str]:
    path = folder / "judge.py"
    path.write_text(code)
    return resolve_command([sys.executable, str(path)])


def asked(text: str, reference: str = "3") -> str:
    return json.dumps({"row": "a:1", "inputs": {}, "reference": reference, "text": text})


def test_pass_at_k_is_the_share_of_draws_with_one_that_passes() -> None:
    for samples in range(1, 7):
        for passed in range(samples + 1):
            for k in range(1, samples + 1):
                draws = list(combinations([True] * passed + [False] * (samples - passed), k))
                assert pass_at(k, samples, passed) == pytest.approx(
                    sum(map(any, draws)) / len(draws)
                )
    assert pass_at(1, 10, 3) == pytest.approx(0.3)
    assert pass_at(10, 20, 1) == pytest.approx(1 - math.comb(19, 10) / math.comb(20, 10))


def test_the_usual_k_are_told_and_that_of_all_samples() -> None:
    assert pass_names(1) == ["pass@1"] and pass_names(5) == ["pass@1", "pass@5"]
    assert pass_names(20) == ["pass@1", "pass@10", "pass@20"]
    assert pass_counts(2, 5) == [pytest.approx(0.4), 1.0, 1.0]
    assert np.isnan(pass_counts(None, 5)).all() and len(pass_counts(None, 5)) == 3


def test_a_command_that_runs_the_text_passes_what_is_right(tmp_path: Path) -> None:
    command = script(tmp_path, RUNS_IT)
    right = "if True:\n    answer = 1 + 2"
    assert run_grader(command, asked(right), 20) == (True, "")
    assert run_grader(command, asked(right, reference="4"), 20) == (False, "")
    assert run_grader(command, asked("answer = "), 20) == (False, "")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(99)\n"
    )
    began = time.monotonic()
    found = run_grader(script(tmp_path, code), asked(""), 6)
    assert found == (False, "ran longer than 6 s") and time.monotonic() - began < 30
    pid = int(child.read_text())
    for _ in range(100):
        if gone(pid):
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("what the command started lives on")


def test_rubbish_is_no_verdict_and_is_told_in_quotes(tmp_path: Path) -> None:
    noise = "import sys\nprint('x' * 10**6)\nprint('\\x1b[31mno', file=sys.stderr)\nsys.exit(7)"
    found = run_grader(script(tmp_path, noise), asked(""), 20)
    assert found == (False, r"ended with 7, saying '\x1b[31mno'")
    killed = "import os\nos.kill(os.getpid(), 9)"
    assert run_grader(script(tmp_path, killed), asked(""), 20) == (False, "was ended by SIGKILL")
    plain = tmp_path / "no program"
    plain.write_text("x")
    plain.chmod(0o755)
    found = run_grader([str(plain)], asked(""), 20)
    assert not found.passed and found.trouble.startswith("ended with 126, saying '[Errno 8]")


def test_a_commands_memory_time_and_surroundings_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = "try: bytearray(5 << 30)\nexcept MemoryError: raise SystemExit(0)\nraise SystemExit(1)"
    assert run_grader(script(tmp_path, greedy), asked(""), 20).passed
    limits = "import resource, sys\nsys.exit(resource.getrlimit(resource.RLIMIT_CPU) != (21, 21))"
    assert run_grader(script(tmp_path, limits), asked(""), 20).passed
    monkeypatch.setenv("HF_TOKEN", "secret")
    alone = (
        "import os, sys\n"
        "bad = 'HF_TOKEN' in os.environ or os.listdir('.') or os.getcwd() != os.environ['HOME']\n"
        "open('left', 'w').write('x')\n"
        "sys.exit(bool(bad))"
    )
    command = script(tmp_path, alone)
    assert run_grader(command, asked(""), 20).passed and run_grader(command, asked(""), 20).passed


def test_a_command_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, RUNS_IT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(sys.executable)
    assert resolve_command(["./link", "judge.py", "--fast"]) == [
        str(tmp_path / "link"),
        str(tmp_path / "judge.py"),
        "--fast",
    ]
    assert Path(resolve_command(["sh"])[0]).is_absolute()


def test_settings_that_make_no_sense_are_refused() -> None:
    for said, why in (
        ("{grader: ['true'], samples: 3}", "all the same at temperature 0 - set temperature"),
        ("{samples: 3, temperature: 1.0}", "3 texts a row need a grader - set grader"),
        ("{grader: []}", "at least 1 item"),
        ("{grader: ['true'], grader_timeout: 0}", "greater than 0"),
    ):
        with pytest.raises(RecipeError, match=why):
            talk("tiny-llama", f"{{kind: text_generation, generate: {said}}}")


def test_a_run_without_a_judge_keeps_its_name() -> None:
    plain = Generation(rows=3)
    assert not {"grader", "samples", "grader_timeout"} & (
        set(plain.model_dump()) | set(plain.to_dict())
    )
    with_judge = Generation(rows=3, grader=["x"], samples=2, temperature=1.0)
    assert Generation.model_validate(with_judge.to_dict()) == with_judge
    recipe = talk("tiny-llama", "{kind: text_generation, generate: {rows: 3}}")
    model, data = find_model("tiny-llama"), recipe.data.resolve()
    names = [
        recipe.but(**{"task.generate.grader": judge}).digest(model, data)
        for judge in (None, ["a"], ["b"])
    ]
    assert names[0] == recipe.digest(model, data) and len(set(names)) == 3


def test_a_command_that_is_missing_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    how = {"grader": ["no-such-judge", "x"], "rows": 1, "max_new_tokens": 1}
    task = {"kind": "text_generation", "generate": how}
    recipe = task_recipe(task, continued, "tiny-llama", "lora", "none")
    recipe = recipe.but(training={"steps": 1, "threads": 1, "proof": "run", "batch_size": 8})
    with pytest.raises(
        RecipeError, match=r"task\.generate\.grader: no command is called 'no-such-ju"
    ):
        peftkit.train(recipe, tmp_path)
    assert not list(tmp_path.rglob("checkpoints"))


JUDGE = """
import json, sys
said = json.load(sys.stdin)
assert set(said) == {"row", "inputs", "reference", "text"}
if said["row"] == "f:3":
    sys.exit(9)
sys.exit(len(said["text"].split()[0]) % 2)
"""


def test_rows_are_judged_and_told_of_by_their_own_names(tmp_path: Path) -> None:
    command = json.dumps(script(tmp_path, JUDGE))
    how = f"{{rows: 4, grader: {command}, samples: 3, temperature: 1.0}}"
    recipe = talk("tiny-llama", f"{{kind: instruction_tuning, template: plain, generate: {how}}}")
    rows = Dataset.from_dict({**QUESTIONS, "row": [f"f:{i}" for i in range(4)]})
    samples = [["a", "ab", "abc"], None, ["ab", "ab", "ab"], ["a", "a", "ab"]]
    said = Predictions([], [], None, ["a", None, "ab", "a"], samples)
    found = grade_predictions(recipe.task, said, rows, ALONE, "trained model")
    assert found.passed == [1, None, 3, 0]
    assert found.notes and found.notes[0].startswith(
        "the grader had no result for 3 of 9 texts of the trained model, which count as failed: "
        "in 3 it ended with 9"
    )
    plain = talk("tiny-llama", "{kind: instruction_tuning, template: plain, generate: {rows: 4}}")
    assert grade_predictions(plain.task, said, rows, ALONE, "x") is said
    assert not list(failure_notes([code_execution.Grade(True), code_execution.Grade(False)], "x"))


@pytest.mark.parametrize("kind", ["instruction_tuning", "text_generation"])
def test_judged_texts_are_scored_beside_the_untuned_base(kind: str, tmp_path: Path) -> None:
    command = json.dumps(script(tmp_path, JUDGE))
    how = f"{{rows: 3, max_new_tokens: 4, grader: {command}, samples: 2, temperature: 1.0}}"
    plain = "template: plain, " if kind == "instruction_tuning" else ""
    recipe = talk("tiny-llama", f"{{kind: {kind}, {plain}generate: {how}}}")
    own = QUESTIONS if kind == "instruction_tuning" else {"text": QUESTIONS["answer"]}
    model = stirred(made(recipe))
    examples = encoded(recipe, model, own)
    columns: dict[str, Any] = {key: [example[key] for example in examples] for key in examples[0]}
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    rows = Dataset.from_dict({**own, "row": [f"g:{i}" for i in range(4)]})
    given = EvalSplit(rows, Dataset.from_dict(columns), (), rows, resamples=50)
    base, _ = evaluate(recipe, made(recipe), given, {}, ALONE)
    assert base is not None
    said, scored = evaluate(recipe, model, given, {UNTRAINED: base}, ALONE)
    assert said is not None and scored is not None
    assert not any("verdict" in note for note in scored.notes)
    drawn = [(texts, hits) for texts, hits in zip(said.samples, said.passed, strict=True) if texts]
    assert len(drawn) == 3 and all(len(texts) == 2 for texts, _ in drawn)
    assert any(texts[0] != texts[1] for texts, _ in drawn), "samples are draws of their own"
    by_hand = [sum(not len(text.split()[0]) % 2 for text in texts) for texts, _ in drawn]
    assert [hits for _, hits in drawn] == by_hand
    one, two = scored.scores["pass@1"], scored.scores["pass@2"]
    assert one.value == pytest.approx(sum(by_hand) / 6) and one.n == two.n == 3
    assert two.value == pytest.approx(sum(hits > 0 for hits in by_hand) / 3)
    assert one.low is not None and one.low <= one.value <= one.high  # type: ignore[operator]
    assert scored.baselines["untrained"]["pass@1"].n == 3
    assert {"pass@1", "pass@2"} <= set(scored.details["better_than_untrained"])
    lines = list(recipe.task.prediction_lines(said, given))
    judged_lines = {"counts": [line["counts"] for line in lines if None not in line["counts"]]}
    values = recipe.task.row_values("pass@1", judged_lines, ())
    assert values is not None and float(np.mean(values)) == pytest.approx(one.value, abs=1e-5)


def test_a_run_with_a_judge_has_its_scores_and_its_note_in_the_record(tmp_path: Path) -> None:
    command = script(tmp_path, "import json, sys; sys.exit(json.load(sys.stdin)['text'] and 4)")
    how = {"rows": 2, "max_new_tokens": 3, "grader": command, "untrained_baseline": False}
    task = {"kind": "instruction_tuning", "template": "plain", "generate": how}
    recipe = task_recipe(task, instructed, "tiny-llama", "lora", "none")
    steps = {"steps": 2, "threads": 1, "proof": "run", "batch_size": 8, "precision": "fp32"}
    record = peftkit.train(recipe.but(training=steps), tmp_path / "runs")
    assert record.scores["pass@1"].n == 2 and record.scores["pass@1"].value == 0
    assert "no result for 2 of 2 texts of the trained model" in " ".join(record.notes)


@pytest.mark.slow
def test_two_ranks_generate_judge_and_show_what_one_does(zygote: Zygote, tmp_path: Path) -> None:
    command = json.dumps(script(tmp_path, JUDGE))
    sampling = "max_new_tokens: 4, samples: 2, temperature: 1.0, few_shot_examples: 2"
    how = f"{{rows: 5, grader: {command}, {sampling}}}"
    settings = (
        "model=tiny-llama",
        f"data={{kind: files, path: {folder_of(instructed)}, max_length: 64}}",
        f"task={{kind: instruction_tuning, template: plain, generate: {how}}}",
        "training.steps=2",
        "training.precision=fp32",
        "training.micro_batch_size=2",
        "training.dropout=0",
    )
    records = []
    for ranks in (1, 2):
        own = tmp_path / str(ranks)
        own.mkdir()
        ended = zygote.run(own, *settings, ranks=ranks)
        assert set(ended.codes) == {0}, ended.said
        records.append(record(own))
    one, two = records
    assert two["world"]["ranks"] == 2 and one["digest"] == two["digest"]
    assert {"pass@1", "pass@2", "rougeL"} <= two["scores"].keys()
    assert one["baselines"].keys() == two["baselines"].keys() == {"untrained", "2-shot"}
    for name in ("bits_per_byte", "loss"):
        assert two["scores"][name]["value"] == pytest.approx(one["scores"][name]["value"], rel=1e-5)
        for asked in ("untrained", "2-shot"):
            ours, theirs = (each["baselines"][asked][name]["value"] for each in (two, one))
            assert ours == pytest.approx(theirs, rel=1e-5)
    for each in records:
        assert each["scores"]["pass@1"]["n"] == 5 == each["baselines"]["2-shot"]["pass@1"]["n"]
