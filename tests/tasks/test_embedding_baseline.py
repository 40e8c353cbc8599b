"""Embedded: what an untrained base's embeddings say, against plain transformers row by row."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import NearestCentroid
from transformers import AutoModel

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.evaluation.baselines import cache
from peftkit.evaluation.baselines.cache import predict_untrained
from peftkit.evaluation.scoring import evaluate
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_model, load_tokenizer
from peftkit.preprocessing.tokenization import encode
from peftkit.runtime.distributed import World
from peftkit.tasks.base import EvalSplit, Predictions
from support.task_rows import Made, labeled, related, scored, sentence, tagged, task_recipe

ALONE = World(0, 1, 1, "fp32", "cpu", "none")


def paired(chance: random.Random) -> dict[str, Any]:
    """Two texts, the second of which repeats as many words of the first as its label says."""
    words = sentence(chance, 6, 6)
    same = chance.randint(0, 6)
    other = words[:same] + sentence(chance, 6 - same, 6 - same)
    return {"text": " ".join(words), "text_pair": " ".join(other), "label": float(same)}


def recipe_for(task: dict[str, Any], make: Made, model: str = "tiny-bert") -> Recipe:
    recipe = task_recipe(task, make, model, "lora", "none")
    return recipe.but(**{"data.text_pair": "text_pair"}) if make is paired else recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


class Base:
    """A recipe's rows, what peftkit's untrained base says of them, and the base as it is."""

    def __init__(self, task: dict[str, Any], make: Made, model: str = "tiny-bert") -> None:
        self.recipe = recipe_for(task, make, model)
        splits = self.recipe.splits(self.recipe.data.resolve())
        self.names = self.recipe.task.label_names(splits)
        self.recipe = self.recipe.with_fitted_state(self.recipe.task.fit_on_train(splits))
        source = find_model(model)
        self.tokenizer = load_tokenizer(source.location, self.recipe.task)
        self.source, self.plain_tokenizer = source, load_tokenizer(source.location)
        examples = encode(self.recipe, splits, self.tokenizer, source, self.names)["test"]
        state = self.recipe.task.fitted_state
        self.given = EvalSplit(splits.test, examples, self.names, splits.train, fitted_state=state)
        self.found = predict_untrained(
            self.recipe, source, self.tokenizer, self.given, "content", ALONE
        )
        self.plain = AutoModel.from_pretrained(source.location).eval()

    def states(self, *words: list[str]) -> list[np.ndarray]:
        """The mean state of each word's pieces, and behind them of all tokens, per text."""
        found = []
        for text in words:
            read = self.plain_tokenizer(text, is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                every = self.plain(**read).last_hidden_state[0].numpy()
            of = [i for i in range(len(text))]
            own = [[p for p, w in enumerate(read.word_ids()) if w == i] for i in of]
            found.append(np.stack([every[p].mean(axis=0) for p in own] + [every.mean(axis=0)]))
        return found


def unit(states: np.ndarray) -> np.ndarray:
    """Each row's direction."""
    return states / np.linalg.norm(states, axis=-1, keepdims=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_a_pairs_number_is_told_by_the_cosine_of_both_texts_alone(model: str) -> None:
    base = Base({"kind": "regression"}, paired, model)
    assert list(base.found) == ["cosine of embeddings"]
    both = [
        np.stack([unit(s[-1]) for s in base.states(*map(str.split, base.given.rows[role]))])
        for role in ("text", "text_pair")
    ]
    cosines = (both[0] * both[1]).sum(axis=1)
    said = np.concatenate(base.found["cosine of embeddings"].outputs)
    assert np.corrcoef(said, cosines)[0, 1] == pytest.approx(1, abs=1e-4), "a line of it"
    scores = base.recipe.task.score(base.found["cosine of embeddings"], base.given).scores
    wanted = spearmanr(cosines, base.given.rows["label"]).statistic
    assert abs(scores["spearman"].value or 0) == pytest.approx(abs(wanted), abs=0.01)


def test_a_line_is_fitted_to_train_so_that_errors_are_in_the_targets_units() -> None:
    base = Base({"kind": "regression"}, paired)
    scored_ = base.recipe.task.score(base.found["cosine of embeddings"], base.given)
    mean, line = scored_.baseline["rmse"].value, scored_.scores["rmse"].value
    assert mean is not None and line is not None
    assert line < 0.7 * mean, "it answers in the labels' units"


def test_a_number_of_one_text_has_no_cosine() -> None:
    assert Base({"kind": "regression"}, scored).found == {}


def test_a_relation_is_told_by_the_states_of_both_parts_in_their_order() -> None:
    base = Base({"kind": "relation_extraction"}, related)

    def embedded(rows: Any) -> np.ndarray:
        plain = [text.replace("<e1>", "").replace("</e1>", "") for text in rows["text"]]
        plain = [text.replace("<e2>", "").replace("</e2>", "").split() for text in plain]
        states = base.states(*plain)  # the second word is the head, the fourth the tail
        return np.stack([np.concatenate([unit(s[1]), unit(s[3])]) for s in states])

    right = [base.names.index(label) for label in base.given.train["label"]]
    fitted = NearestCentroid().fit(embedded(base.given.train), right)
    found = base.found["nearest centroid"].probabilities
    assert found.argmax(axis=1).tolist() == fitted.predict(embedded(base.given.rows)).tolist()


def test_a_word_is_told_by_the_state_of_its_first_piece() -> None:
    base = Base({"kind": "token_classification", "decoding": "greedy"}, tagged)

    def embedded(rows: Any) -> np.ndarray:
        return np.concatenate([unit(s[:-1]) for s in base.states(*rows["tokens"])])

    right = [base.names.index(tag) for tags in base.given.train["tags"] for tag in tags]
    fitted = NearestCentroid().fit(embedded(base.given.train), right)
    said = base.recipe.task.answers(base.found["nearest centroid"], base.given)
    tags = [base.names.index(tag) for answer in said for tag in answer["tags"]]
    assert tags == fitted.predict(embedded(base.given.rows)).tolist()


def test_a_label_among_several_is_told_by_who_has_it_and_who_has_not() -> None:
    base = Base({"kind": "multilabel"}, labeled)

    def embedded(rows: Any) -> np.ndarray:
        return np.stack([unit(s[-1]) for s in base.states(*map(str.split, rows["text"]))])

    found = base.found["nearest centroid"].probabilities
    for index, name in enumerate(base.names):
        has = [name in labels for labels in base.given.train["label"]]
        fitted = NearestCentroid().fit(embedded(base.given.train), has)
        assert (found[:, index] > 0.5).tolist() == fitted.predict(
            embedded(base.given.rows)
        ).tolist()


def test_thresholds_of_the_trained_model_are_not_held_against_the_base() -> None:
    base = Base({"kind": "multilabel"}, labeled)
    trained = load_model(base.recipe, base.source, base.tokenizer, base.names, "fp32")
    strict = {"thresholds": [1.0] * len(base.names)}
    given = EvalSplit(**{**vars(base.given), "fitted_state": strict})
    _, scored_ = evaluate(base.recipe, trained, given, base.found, ALONE)
    assert scored_ is not None
    theirs = scored_.baselines["nearest centroid"]["micro_f1"].value
    plain = base.recipe.task.score(base.found["nearest centroid"], base.given).scores
    assert theirs == plain["micro_f1"].value and theirs


def test_a_row_of_train_whose_tag_is_unknown_teaches_nothing() -> None:
    task = Recipe.load("lora_tiny", "task=token_classification").task
    shown, asked = [np.eye(3)], [np.eye(3)[:2]]
    found = task.predict_from_embeddings(shown, [[1, -1, 0]], asked, ("O", "B-PER"))  # type: ignore[attr-defined]
    assert [row.argmax() for row in found[0]] == [1, 0]


@pytest.mark.parametrize(
    ("task", "make", "simple"),
    [
        ({"kind": "regression"}, paired, ["train's mean", "cosine of embeddings"]),
        ({"kind": "relation_extraction"}, related, ["majority", "nearest centroid"]),
        (
            {"kind": "token_classification"},
            tagged,
            ["all_O", "most_frequent_tag", "nearest centroid"],
        ),
        ({"kind": "multilabel"}, labeled, ["no label", "shares in train", "nearest centroid"]),
    ],
    ids=["regression", "relation_extraction", "token_classification", "multilabel"],
)
def test_records_hold_it_and_leave_it_out_when_told_so(
    task: dict[str, Any], make: Made, simple: list[str], tmp_path: Path
) -> None:
    recipe = recipe_for(task, make)
    short = {"training.steps": 2, "training.threads": 1, "training.proof": "run"}
    record = peftkit.train(recipe.but(**short), tmp_path)
    assert list(record.baselines) == simple
    silent = peftkit.train(
        recipe.but(**short, task={**task, "untrained_baseline": False}), tmp_path
    )
    assert list(silent.baselines) == simple[:-1]
    assert silent.scores == record.scores, "asking changes nothing else"
    plain = json.loads(recipe.task.model_dump_json())
    assert plain["untrained_baseline"] is None


def test_a_damaged_memory_of_the_base_is_said_and_the_base_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Base({"kind": "relation_extraction"}, related).found
    [path] = (tmp_path / "cache" / "untrained").glob("*.json")
    path.write_text(path.read_text()[:100])
    capsys.readouterr()
    again = Base({"kind": "relation_extraction"}, related).found
    said = capsys.readouterr().err
    assert str(path) in said and "is damaged" in said
    np.testing.assert_array_equal(
        first["nearest centroid"].probabilities, again["nearest centroid"].probabilities
    )
    monkeypatch.setattr(cache, "load_base", None)
    assert isinstance(
        Base({"kind": "relation_extraction"}, related).found["nearest centroid"], Predictions
    )
