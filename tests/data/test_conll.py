"""CoNLL's columns: sentences from lines, and what cannot be read of them."""

from pathlib import Path

from peftkit.data.validation import RequestedColumn, scan_file
from peftkit.readers.base import reader_for
from peftkit.readers.lines import Flaw, Record


def read(folder: Path, text: str, name: str = "train.conll") -> list[Record | Flaw]:
    (folder / name).write_text(text, encoding="utf-8")
    return list(reader_for(folder / name).records(folder / name))


def test_sentences_are_rows_of_lists(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\n. . O O\n\n\nPeter NNP I-NP I-PER"
    first, second = read(tmp_path, text)
    assert first == (
        "line 3",
        {
            "tokens": ["EU", "."],
            "column_2": ["NNP", "."],
            "column_3": ["I-NP", "O"],
            "tags": ["I-ORG", "O"],
        },
    )
    assert second.place == "line 7"
    assert isinstance(second, Record) and second.values["tokens"] == ["Peter"]


def test_a_number_sign_is_a_word_where_it_has_a_words_columns(tmp_path: Path) -> None:
    text = "# global.columns = word tag\nNo O\n# O\n# newpar here it is\n1 B-NUM\n"
    (row,) = read(tmp_path, text, "x.iob2")
    assert isinstance(row, Record)
    assert row.values == {"tokens": ["No", "#", "1"], "tags": ["O", "O", "B-NUM"]}


def test_words_with_blanks_stand_in_columns_parted_by_tabs(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "New York\tB-LOC\r\n1 000\tO\r\n", "x.bio")
    assert isinstance(row, Record) and row.values["tokens"] == ["New York", "1 000"]


def test_lines_of_other_widths_are_flaws(tmp_path: Path) -> None:
    row, flaw, rest = sorted(read(tmp_path, "a O\nb\nc O\n\nd O O\n"), key=lambda e: e.place)
    assert isinstance(row, Record) and row.values["tokens"] == ["a", "c"]
    assert flaw == ("line 2", "has 1 columns, but the first word has 2 - fix the line")
    assert rest == ("line 5", "has 3 columns, but the first word has 2 - fix the line")
    assert read(tmp_path, "a\nb\n") == [("line 1", "has 1 columns - give a tag after each word")]


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.conll").write_bytes(b"a O\nb\xff O\n")
    found = scan_file(tmp_path / "x.conll", "x.conll", [RequestedColumn("tokens", "tokens", True)])
    assert "is not UTF-8 (byte 0xff) - save the file as UTF-8" in found.flaws
    assert found.num_rows == 1 and found.columns == {"tokens", "tags"}


def test_universal_dependencies_leave_out_what_is_no_word(tmp_path: Path) -> None:
    def line(number: str, word: str, pos: str) -> str:
        return "\t".join([number, word, "_", pos, *"______"]) + "\n"

    text = "# text = zum Haus\n" + line("1-2", "zum", "_") + line("1", "zu", "ADP")
    text += line("1.1", "x", "X") + line("2", "dem", "DET") + "\n" + line("1", "Haus", "NOUN")
    first, second = read(tmp_path, text, "x.conllu")
    assert isinstance(first, Record) and isinstance(second, Record)
    assert (first.values["tokens"], first.values["upos"]) == (["zu", "dem"], ["ADP", "DET"])
    assert second.values["tokens"] == ["Haus"]
