"""A data format is added from outside the package, in one file named in `plugins:`."""

from pathlib import Path

import pytest

from support.commands import peftkit

PLUGIN = '''
"""Key and value lines: 'name=value' per line, a blank line between rows."""

from peftkit.readers.base import DataReader
from peftkit.readers.lines import Flaw, Record


class RecordReader(DataReader):
    """Rows of name=value lines."""

    suffixes = (".rec",)

    def records(self, path, wanted=None):
        for index, block in enumerate(path.read_text("utf-8").strip().split("\\n\\n")):
            lines = block.splitlines()
            if all("=" in line for line in lines):
                yield Record(f"row {index}", dict(line.split("=", 1) for line in lines))
            else:
                yield Flaw(f"row {index}", "has a line without '=' - write name=value")
'''
RECIPE = """
plugins: [record_format]
model: tiny-bert
data: {kind: files, path: rows.rec, max_length: 16}
task: text_classification
strategy: bitfit
training: {epochs: 1, batch_size: 8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "record_format.py").write_text(PLUGIN)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text(RECIPE)
    write_rows(
        tmp_path,
        *(f"text=a {'good' if i % 2 else 'bad'} row {i}\nlabel={i % 2}" for i in range(40)),
    )
    return tmp_path


def write_rows(folder: Path, *rows: str) -> None:
    (folder / "rows.rec").write_text("\n\n".join(rows))


def test_a_recipe_trains_on_a_format_of_a_plugin(folder: Path) -> None:
    done = peftkit("train", "own", cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (folder / "runs").rglob("predictions.jsonl"))
    assert '"row": "rows.rec:' in (run / "predictions.jsonl").read_text()
    (folder / "new.rec").write_text("text=a good row")
    predict = ("predict", str(run), "--in", "new.rec")
    said = peftkit(*predict, cwd=folder, PYTHONPATH=str(folder))
    assert said.returncode == 0 and said.stdout.splitlines()[1].startswith("a good row,"), said


def test_flaws_of_a_plugin_format_are_reported_like_any(folder: Path) -> None:
    write_rows(folder, "text=a\nlabel=1", "text")
    done = peftkit("train", "own", cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 2 and "rows.rec, row 1: has a line without '='" in done.stderr


def test_messages_list_the_suffix(folder: Path) -> None:
    (folder / "rows.xyz").write_text("")
    done = peftkit("train", "own", "data.path=rows.xyz", cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 2 and ".parquet, .rec, .tsv" in done.stderr


def test_formats_are_listed(folder: Path) -> None:
    done = peftkit("list", "formats", cwd=folder)
    assert ".csv\tComma-separated values with a header line." in done.stdout


def test_two_readers_of_one_suffix_are_refused(folder: Path) -> None:
    (folder / "record_format.py").write_text(PLUGIN.replace('".rec"', '".csv"'))
    done = peftkit("train", "own", cwd=folder, PYTHONPATH=str(folder))
    both = "peftkit.readers.tables.CsvReader and record_format.RecordReader"
    assert done.returncode == 2 and f"plugins: {both} both read .csv files" in done.stderr
