"""Scores of generated texts in any script: an exact copy is worth all, in English as ever."""

# ruff: noqa: RUF001

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from peftkit.errors import DataError
from peftkit.evaluation.scoring import add_baselines
from peftkit.metrics.text import ROUGE, bleus, counts_of, rouges, totals_of
from peftkit.metrics.tokenizers import UnicodeWords, bleu_tokenizer, english
from peftkit.records.record import read_record
from peftkit.reporting.analysis.compatibility import facts_of
from peftkit.runs.model_card import recipe_of
from peftkit.tasks.base import EvalSplit, Predictions, Scored, Task
from peftkit.tasks.question_answering.scoring import best_match, sentences_of

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"
SENTENCES = {
    "Cyrillic": "Вчера ветер сорвал крышу со старого сарая.",
    "Greek": "Το πλοίο έφυγε αργά από το λιμάνι χθες.",
    "Hebrew": "הספינה יצאה מהנמל מאוחר מאוד אתמול בערב.",
    "Arabic": "غادرت السفينة الميناء متأخرة مساء أمس.",
    "Devanagari": "कल शाम जहाज़ बंदरगाह से देर से निकला।",
    "Tamil": "கப்பல் நேற்று மாலை துறைமுகத்தை விட்டு தாமதமாக சென்றது.",
    "Georgian": "გემი გუშინ საღამოს ნავსადგურიდან გვიან გავიდა.",
    "Hangul": "배가 어제 저녁 항구를 늦게 떠났다고 한다.",
    "Han": "那艘船昨天晚上很晚才离开港口。",
    "Kana": "その船は昨日の夜おそく港を出ました。",
    "Thai": "เรือออกจากท่าเมื่อคืนนี้ช้ามาก",
    "Khmer": "កប៉ាល់ចាកចេញពីកំពង់ផែយឺត",
    "Burmese": "သင်္ဘောသည်မနေ့ညကဆိပ်ကမ်းမှထွက်ခွာသည်",
    "English": "The ship left the harbor very late last night.",
}
FOUND_HERE = {name: text for name, text in SENTENCES.items() if name not in ("Hangul", "Kana")}
"""Those whose scores need no package that is not installed."""


def scored(task: dict[str, Any], said: list[str], right: list[str]) -> Scored:
    """The scores of a task for texts said beside texts that are right."""
    made = Task.parse(task, "task")
    count, names = len(right), {"instruction_tuning": ("question", "answer")}
    source, target = names.get(made.kind, ("source", "target"))
    rows = Dataset.from_dict({source: ["?"] * count, target: right})
    outputs = [np.asarray([1.0, 2.0], dtype=np.float32)] * count
    predictions = Predictions([[]] * count, outputs, 1.0, said)
    examples = {"bytes": [9] * count, "labels": [[1]] * count}
    tuned = {"format": "question_answer"}
    return made.with_fitted_state(tuned).score(
        predictions, EvalSplit(rows, examples, (), resamples=0)
    )


SUMMARIES: dict[str, Any] = {"kind": "summarization"}
TRANSLATION: dict[str, Any] = {"kind": "translation"}
CHAT: dict[str, Any] = {"kind": "instruction_tuning", "generate": {"rows": 9}}


@pytest.mark.parametrize("script", SENTENCES)
@pytest.mark.parametrize("task", [SUMMARIES, CHAT], ids=["summaries", "chat"])
def test_rouge_of_an_exact_copy_is_1_and_of_another_text_less(
    task: dict[str, Any], script: str
) -> None:
    text = SENTENCES[script]
    found = scored(task, [text, text[: len(text) // 2]], [text, text])
    assert all(0.5 < found.scores[name].value < 1 for name in ROUGE)  # type: ignore[operator]
    copied = scored(task, [text], [text])
    assert [copied.scores[name].value for name in ROUGE] == [1.0, 1.0, 1.0]
    other = "Привет" if script != "Cyrillic" else "船"
    assert scored(task, [other], [text]).scores["rouge1"].value == 0.0


@pytest.mark.parametrize("script", FOUND_HERE)
def test_bleu_of_an_exact_copy_is_100_and_of_half_of_it_is_more_than_nothing(script: str) -> None:
    text = SENTENCES[script]
    right = [text] * 3
    found = scored(TRANSLATION, right, right)
    assert found.scores["bleu"].value == pytest.approx(100)
    half = scored(TRANSLATION, [text, text, text[: len(text) // 2]], right).scores["bleu"].value
    assert half is not None and 50 < half < 100


@pytest.mark.parametrize(
    ("script", "tokenizer"),
    {
        **{"Han": "zh", "Kana": "ja-mecab", "Hangul": "ko-mecab", "Thai": "char", "Khmer": "char"},
        **dict.fromkeys(["Cyrillic", "Greek", "Arabic", "Devanagari", "English"], "13a"),
    }.items(),
)
def test_bleu_is_split_as_sacrebleu_does_for_the_language(script: str, tokenizer: str) -> None:
    assert bleu_tokenizer([SENTENCES[script]] * 9 + ["2,000 $"]) == tokenizer


def test_one_reference_in_another_script_does_not_choose_and_many_do() -> None:
    han, latin = SENTENCES["Han"], SENTENCES["English"]
    assert bleu_tokenizer([latin] * 19 + [han]) == bleu_tokenizer([]) == "13a"
    assert bleu_tokenizer([latin] * 15 + [han] * 5) == "zh"
    assert bleu_tokenizer(["东京"] * 2 + [SENTENCES["Kana"]] * 7) == "ja-mecab"
    assert bleu_tokenizer(["红の豬是一部很好看的电影。"] * 9) == "zh"


def test_chinese_bleu_is_sacrebleus_with_its_own_tokenizer_and_says_so() -> None:
    right = [SENTENCES["Han"], "我喜欢用GPT写诗，也喜欢读书。"]
    said = ["那艘船昨天夜里很晚才离开了港口。", "我喜欢用GPT写歌，也喜欢读诗。"]
    found = scored(TRANSLATION, said, right)
    theirs = sacrebleu.corpus_bleu(said, [right], tokenize="zh").score
    assert found.scores["bleu"].value == pytest.approx(theirs) and 10 < theirs < 90
    assert "|tok:zh|" in found.details["signatures"]["bleu"]
    assert [note for note in found.notes if note.startswith("BLEU: texts are split by zh")]


def test_a_tokenizer_that_the_recipe_names_is_taken_without_a_word() -> None:
    named = {**TRANSLATION, "score_tokenizer": "char"}
    found = scored(named, [SENTENCES["Kana"]], [SENTENCES["Kana"]])
    assert "|tok:char|" in found.details["signatures"]["bleu"] and found.notes == ()
    english_only = {**SUMMARIES, "score_tokenizer": "english"}
    assert scored(english_only, ["да"], ["да"]).scores["rouge1"].value == 0.0
    everywhere = {**SUMMARIES, "score_tokenizer": "unicode"}
    assert scored(everywhere, ["naïve"], ["naïve à"]).scores["rouge1"].value == pytest.approx(2 / 3)


def test_texts_that_a_tokenizer_does_not_suit_are_counted() -> None:
    right = [SENTENCES["English"]] * 19 + [SENTENCES["Han"]]
    found = scored(TRANSLATION, right, right)
    said = "BLEU: 13a does not suit 1 of 20 references (task.score_tokenizer)"
    assert said in found.notes
    thai = [SENTENCES["Thai"]] * 5 + [SENTENCES["English"]]
    assert "BLEU: char does not suit 1 of 6" in str(scored(TRANSLATION, thai, thai).notes)


def test_how_rouge_split_the_references_is_in_the_record() -> None:
    latin, greek = SENTENCES["English"], SENTENCES["Greek"]
    of = {
        "english": scored(SUMMARIES, [latin], [latin]),
        "unicode": scored(SUMMARIES, [greek], [greek]),
        "english+unicode": scored(SUMMARIES, [greek, latin], [greek, latin]),
    }
    for ways, found in of.items():
        assert f"|tok:{ways}|stem:porter|" in found.details["signatures"]["rougeL"]
    assert of["english"].notes == ()
    assert "1 of 2 references are of other letters" in str(of["english+unicode"].notes)


LATIN = st.text(
    st.sampled_from("abcdefgh XYZ 12 .,-'\n") | st.sampled_from("éßðø 中а"), max_size=40
)


@given(LATIN, LATIN)
def test_rouge_of_latin_references_is_rouge_scores_to_the_last_bit(said: str, right: str) -> None:
    usual = RougeScorer(list(ROUGE), use_stemmer=True).score(right, said)
    latin = sum(c.isascii() for c in right if c.isalpha())
    if 2 * latin >= sum(map(str.isalpha, right)):
        assert counts_of([rouges()], said, right)[:3] == [usual[n].fmeasure for n in ROUGE]


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_in_ascii_words_of_any_script_are_rouge_scores_own(text: str) -> None:
    assert UnicodeWords().tokenize(text) == english().tokenize(text)


def test_english_words_within_other_scripts_are_split_and_stemmed_as_in_english() -> None:
    words = UnicodeWords().tokenize("Команда Running-Tests запускает tests")
    assert words == ["команда", "run", "test", "запускает", "test"]


def splits_of(targets: list[str]) -> Any:
    rows = Dataset.from_dict({"source": ["x"] * len(targets), "target": targets})
    return type("Splits", (), {"train": rows, "validation": rows, "test": rows})


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
def test_japanese_without_mecab_is_refused_with_what_to_install_and_what_to_say() -> None:
    with pytest.raises(DataError) as caught:
        Task.parse(TRANSLATION, "task").label_names(splits_of([SENTENCES["Kana"]] * 4))
    said = str(caught.value)
    assert "task.score_tokenizer: BLEU of the references needs ja-mecab" in said
    assert "pip install 'sacrebleu[ja]', or set task.score_tokenizer=char" in said
    for more in ({"score_tokenizer": "char"}, {"generate": None, "metric": "bits_per_byte"}):
        task = Task.parse({**TRANSLATION, **more}, "task")
        assert task.label_names(splits_of([SENTENCES["Kana"]] * 4)) == ()


def test_texts_in_many_scripts_add_up_as_texts_in_one() -> None:
    kinds = [rouges(), bleus("zh")]
    pairs = [(SENTENCES[a], SENTENCES[a]) for a in ("Han", "English", "Arabic")]
    sums = np.asarray([counts_of(kinds, *pair) for pair in pairs]).sum(axis=0, keepdims=True)
    assert {name: float(value[0]) for name, value in totals_of(kinds, sums).items()} == {
        **dict.fromkeys(ROUGE, 1.0),
        "bleu": pytest.approx(100),
    }


def test_how_texts_were_split_is_among_a_runs_notes() -> None:
    found = scored(SUMMARIES, [SENTENCES["Tamil"]], [SENTENCES["Tamil"]])
    nothing = Predictions([], [], None), {}, EvalSplit({}, {}, ())
    notes = add_baselines(Task.parse(SUMMARIES, "task"), found, *nothing).notes
    assert notes == found.notes and len(notes) == 1


@pytest.mark.parametrize("data", ["samsum", "multi30k", "alpaca"])
def test_runs_keep_their_names_where_no_tokenizer_is_named(data: str) -> None:
    path = next(RECORDS.joinpath(data).glob("*/record.json"))
    record = read_record(path)
    recipe = recipe_of(record)
    assert recipe.digest(record.model, record.data) == record.digest
    other = recipe.but(task__score_tokenizer="char" if data == "multi30k" else "unicode")
    assert other.digest(record.model, record.data) != record.digest


def test_runs_whose_texts_were_split_in_other_ways_are_not_mixed() -> None:
    record = read_record(next(RECORDS.joinpath("multi30k").glob("*/record.json")))
    assert facts_of(record)["score tokenizer"] == "13a"
    signatures = {"bleu": "nrefs:1|tok:zh|smooth:exp", "chrf": "nrefs:1|nc:6"}
    other = record.model_copy(update={"details": {"signatures": signatures}})
    assert facts_of(other)["score tokenizer"] == "zh"
    without = record.model_copy(update={"details": {"signatures": None}})
    assert "score tokenizer" not in facts_of(without)


@pytest.mark.parametrize("script", SENTENCES)
def test_an_answer_that_is_a_copy_is_right_in_any_script(script: str) -> None:
    answer = SENTENCES[script][:12]
    assert best_match(answer, [answer]) == (1.0, 1.0)


def test_answers_without_spaces_share_characters_and_no_scripts_punctuation_counts() -> None:
    exact, f1 = best_match("北京大学", ["北京"])
    assert (exact, f1) == (0.0, pytest.approx(2 / 3))
    assert best_match("「北京」", ["北京"]) == best_match("दिल्ली।", ["दिल्ली"]) == (1.0, 1.0)
    assert best_match("上海", ["北京"]) == (0.0, 0.0)
    assert best_match("“Paris”", ["Paris"]) == (0.0, 0.0)  # as SQuAD's official script
    assert best_match("", [], nothing=True) == (1.0, 1.0)
    assert best_match("北京", [], nothing=True) == (0.0, 0.0)


def test_sentences_of_a_context_without_spaces_are_found() -> None:
    context = "他来了。她走了！好"
    assert [context[a:b] for a, b in sentences_of(context)] == ["他来了。", "她走了！", "好"]
    assert sentences_of("他来了。") == [(0, 4)]
