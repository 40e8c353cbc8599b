"""The proof of a merge compares answers: the run's, and its folder's by transformers alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_merge_language_models import LORA, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import peftkit
from peftkit.errors import RunError
from peftkit.merging import inference_settings, metadata_files
from peftkit.merging.merge import Merged, merge_rows
from peftkit.merging.verification import text_answers, verify
from peftkit.merging.verification.proof import MergeProof
from support.task_rows import Made, classified, tagged
from support.varied_models import TEMPLATES, VariedModel, build

pytestmark = pytest.mark.usefixtures("proof_in_this_process")
CHAT = {"kind": "instruction_tuning", "template": TEMPLATES["turns"]}
LEARNING = "training={steps: 24, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.02}"


def answered(chance: Any) -> dict[str, Any]:
    """A question with an answer that is quickly learned, its end too."""
    return {"prompt": chance.choice(["water", "bread", "song"]), "completion": "the old river"}


def interrupted(chance: Any) -> dict[str, Any]:
    """A text that speaks of a special token, and its label."""
    row = classified(chance)
    words = row["text"].split()
    return {**row, "text": " ".join([*words[:2], "</s>", *words[2:]])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs by name, made when first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[str, tuple[VariedModel, dict[str, Any], Made, tuple[str, ...]]] = {
        "chat": (
            VariedModel("llama", tied=False, chat="given"),
            CHAT,
            answered,
            ("full", LEARNING),
        ),
        "t5": (VariedModel("t5"), {"kind": "text_classification"}, interrupted, (LORA,)),
        "bart": (VariedModel("bart"), {"kind": "text_classification"}, interrupted, (LORA,)),
        "tags": (VariedModel("bert"), {"kind": "token_classification"}, tagged, (LORA,)),
        "bert": (VariedModel("bert"), {"kind": "text_classification"}, classified, (LORA,)),
    }

    def run(name: str) -> Path:
        runs = folder / "runs" / name  # apart from the models, which have such names too
        if not runs.is_dir():
            model, task, make, how = made[name]
            trained(runs, build(model, folder), task, make, *how)
        return next(path.parent for path in runs.glob("*/record.json"))

    return run


def merged(run: Path, to: Path) -> MergeProof:
    found = peftkit.merge(run, to).proof
    assert found is not None
    return found


def test_a_merged_chat_model_ends_its_turns_in_plain_transformers(
    runs: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = merged(runs("chat"), tmp_path / "merged")
    assert found.answers is not None and found.greedy is not None
    assert found.answers.compared == found.answers.equal == found.greedy.ended == 8
    rows = {
        row["what"]: row["value"]
        for row in merge_rows(
            Merged.model_validate_json((tmp_path / "merged" / "merge.json").read_text())
        )
    }
    assert rows["answers by transformers alone"] == "8 of 8 equal to the run's"
    capfd.readouterr()
    model, said = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    chat = pipeline("text-generation", str(tmp_path / "merged"), device="cpu")
    assert not any(said.values())
    assert not [
        line
        for line in capfd.readouterr().err.splitlines()
        if "weights" in line.lower() and "Loading" not in line
    ]
    asked = [{"role": "user", "content": "water"}]
    answer = chat(asked)[0]["generated_text"][-1]
    assert answer["role"] == "assistant" and answer["content"].startswith("the old river")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = model.generate(**tokenizer.apply_chat_template(asked, **how))[0]
    assert tokenizer.decode(ids[-1]) == "<|im_end|>" and len(ids) < 100


def without_the_turns_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*given: Any) -> Any:
        config = ours(*given)
        config.eos_token_id = [2]
        return config

    ours = inference_settings.training_generation_config
    monkeypatch.setattr(inference_settings, "training_generation_config", short)


def with_another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = inference_settings.write_template
    other = partial(ours, TEMPLATES["eos"])
    monkeypatch.setattr(inference_settings, "write_template", lambda _, folder: other(folder))


@pytest.mark.parametrize("spoil", [without_the_turns_end, with_another_template])
def test_a_folder_whose_texts_end_or_begin_otherwise_is_removed(
    spoil: Callable[[pytest.MonkeyPatch], None],
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    with pytest.raises(RunError, match=r"answers differ from the run's: .* of 8 held-out rows"):
        merged(runs("chat"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("tolerance", "ties"), [(1e-6, 0), (1e9, 8)])
def test_a_text_that_parts_at_a_near_tie_is_counted_and_any_other_is_refused(
    tolerance: float,
    ties: int,
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def generated(*given: Any) -> Any:
        return [replace_first(each) for each in ours(*given)]

    def replace_first(answer: Any) -> Any:
        return text_answers.Answer([5, *answer.tokens[1:]], f"x{answer.text}", answer.ended)

    ours = text_answers.generated
    monkeypatch.setattr(text_answers, "generated", generated)
    monkeypatch.setattr(verify, "tolerances", lambda *_: (tolerance, tolerance))
    if ties:
        found = merged(runs("chat"), tmp_path / "merged").answers
        assert found is not None and (found.equal, found.near_ties) == (0, ties)
    else:
        with pytest.raises(RunError, match=r"row 1, 2, 3, 4, 5, 6, 7, 8"):
            merged(runs("chat"), tmp_path / "merged")


def test_labels_and_probabilities_are_those_of_a_plain_pipeline(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    found = merged(runs("bert"), tmp_path / "merged").answers
    assert found is not None and (found.compared, found.equal, found.different) == (8, 8, [])


def test_tags_are_those_of_a_plain_pipeline(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = merged(runs("tags"), tmp_path / "merged").answers
    assert found is not None and (found.compared, found.equal) == (8, 8)
    names = ["B-PER", "B-LOC", "I-LOC", "O", "I-PER"]
    settings(id2label={str(i): name for i, name in enumerate(names)})(monkeypatch)
    with pytest.raises(RunError, match="8 of 8 held-out rows differently"):
        merged(runs("tags"), tmp_path / "again")


def settings(**changed: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """A fault in the merged configuration."""

    def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
        ours = metadata_files.merged_config
        monkeypatch.setattr(
            metadata_files, "merged_config", lambda *given: {**ours(*given), **changed}
        )

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        settings(problem_type="multi_label_classification"),
        settings(id2label={"0": "sport", "1": "food"}, label2id={"sport": 0, "food": 1}),
        settings(id2label={"0": "LABEL_0", "1": "LABEL_1"}),
    ],
    ids=["sigmoid", "swapped", "nameless"],
)
def test_a_folder_whose_labels_are_others_is_removed(
    spoil: Callable[[pytest.MonkeyPatch], None],
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    with pytest.raises(RunError, match="8 of 8 held-out rows differently"):
        merged(runs("bert"), tmp_path / "merged")


def test_a_special_token_in_a_text_is_read_as_in_training_or_said(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    found = merged(runs("bart"), tmp_path / "bart").answers
    assert found is not None and found.compared == found.equal == 8
    # in T5's vocabulary the end is a word as well, and transformers takes it for one
    found = merged(runs("t5"), tmp_path / "t5").answers
    assert found is not None and (found.compared, found.tokenized_differently) == (0, 8)


def test_a_tokenizer_that_was_not_told_to_read_it_as_text_is_seen(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_settings, "is_causal_model", lambda *_: True)
    with pytest.raises(RunError, match="though its weights are right"):
        merged(runs("bart"), tmp_path / "merged")
