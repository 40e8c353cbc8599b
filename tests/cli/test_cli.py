"""The command line in processes of its own: messages, exit codes, and no heavy imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.cli.commands import COMMANDS
from peftkit.cli.exit_codes import guarded
from peftkit.cli.launch import arguments, starter
from peftkit.cli.parser import parser, run_parser
from peftkit.errors import RunError, RunStopped
from support.commands import ROOT, peftkit, python, run_py

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "pandas", "bitsandbytes")
BARE = ("pydantic", *HEAVY)
WRONG = ["strategy.rnk=16", "trainning.lr=1", "training.lr=-1"]
FAULTS = (
    "error: recipe 'lora_imdb' cannot run:\n"
    "  strategy.rnk (command line): no such setting"
    " - choose from alpha, batches, dropout, kind, loraplus_lr_ratio, r, targets, variant\n"
    "  training.lr (command line): input should be greater than 0 or 'auto' (got -1)\n"
    "  trainning (command line): no such setting - did you mean 'training'?\n"
)


def imported(code: str, cwd: Path, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a process has imported after running `code`."""
    ask = f"import sys\n{code}\nprint('SEEN', *[n for n in {names!r} if n in sys.modules])"
    done = python("-c", ask, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def cli(*typed: str, door: str = "main.main") -> str:
    """Code that runs a command line and ignores its exit code."""
    return (
        "import contextlib, peftkit.cli.main\n"
        f"with contextlib.suppress(SystemExit): peftkit.cli.{door}({list(typed)!r})"
    )


@pytest.mark.parametrize("door", [run_py, peftkit])
def test_a_faulty_recipe_prints_one_message_on_stderr_and_exits_with_2(
    door: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    typed = ["recipe=lora_imdb"] if door is run_py else ["train", "lora_imdb"]
    done = door(*typed, *WRONG, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", FAULTS)


def test_only_rank_0_prints(tmp_path: Path) -> None:
    for typed in (["recipe=lora_imdb", *WRONG], ["recipe=lora_imdb", "--bogus"], []):
        done = run_py(*typed, cwd=tmp_path, RANK="1", WORLD_SIZE="2")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", ""), typed
        assert run_py(*typed, cwd=tmp_path, RANK="0", WORLD_SIZE="2").stderr


def test_a_misspelled_recipe_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    done = run_py("recipe=lora_imbd", cwd=ROOT)
    message = "error: no recipe is called 'lora_imbd' in recipes - did you mean 'lora_imdb'?\n"
    assert done.stderr == message
    assert run_py("recipe=lora_imbd", cwd=tmp_path).stderr.endswith("did you mean 'lora_imdb'?\n")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "error: recipe= is missing - set recipe=NAME, one of adapter_"),
        (["recipe="], "error: recipe= is missing - set recipe=NAME"),
        (["recipe=a", "recipe=b"], "error: recipe= is given 2 times - set recipe=NAME"),
        (["recipe=lora_imdb", "strategy.r"], "strategy.r: is not of the form key=value"),
        (["recipe=/etc"], "error: the recipe '/etc' is a directory - name a YAML file"),
        (["recipe=lora_imdb", "--jsn"], "run.py: error: unrecognized arguments: --jsn"),
    ],
    ids=["none", "empty", "twice", "bare", "folder", "flag"],
)
def test_invalid_arguments_are_answered_with_what_to_write(
    typed: list[str], message: str, tmp_path: Path
) -> None:
    done = run_py(*typed, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("list", ["list"]),
        ("show", ["show", "lora_imdb"]),
        ("train", ["train", "lora_imdb", *WRONG]),
        ("plan", ["plan", "lora_imdb", *WRONG]),
        ("list", ["list", "strategies"]),
        ("schema", ["schema"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_commands_without_a_model_import_no_heavy_library(
    command: str, typed: list[str], tmp_path: Path
) -> None:
    assert imported(cli(*typed), tmp_path, HEAVY) == []


def test_a_faulty_launch_imports_no_heavy_library(tmp_path: Path) -> None:
    code = cli("recipe=lora_imdb", *WRONG, door="commands.run_recipe")
    assert imported(code, tmp_path, HEAVY) == []


def test_help_and_unknown_names_do_not_import_pydantic(tmp_path: Path) -> None:
    assert imported(cli("--help"), tmp_path, BARE) == []
    assert imported(cli("show", "lora_imbd"), tmp_path, BARE) == []
    assert imported("import peftkit", tmp_path, BARE) == []


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = peftkit("--help", cwd=tmp_path)
    assert done.returncode == 0 and all(f"\n    {name} " in done.stdout for name in COMMANDS)
    listed = next(a for a in parser()._actions if a.dest == "command")
    assert set(listed.choices or ()) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str, tmp_path: Path) -> None:
    needed = {"new": ["x.csv"], "predict": ["run"], "list": [], "schema": []}
    needed |= {name: ["run", "--to", "made"] for name in ("merge", "export")}
    assert parser().parse_args([command, *needed.get(command, ["lora_tiny"]), "--json"]).json


def test_show_prints_each_value_and_where_it_is_set(tmp_path: Path) -> None:
    typed = ["show", "lora_imdb", "strategy.r=16", "task.metric=f1"]
    done = peftkit(*typed, cwd=ROOT)
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert done.stderr == "" and done.stdout.startswith("model\t")
    assert rows["strategy.r"] == ["16", "command line"]
    assert rows["strategy.kind"] == ['"lora"', "recipes/lora_imdb.yaml"]
    assert rows["task.kind"] == ['"text_classification"', "recipes/_imdb.yaml"]
    assert rows["task.metric"] == ['"f1"', "command line"]
    assert rows["strategy.alpha"][1] == rows["quantize.kind"][1] == "default"
    assert rows["training.lr"] == ['"auto"', "default of lora: 0.0005"]


def test_show_as_json_is_a_recipe_that_runs_again(tmp_path: Path) -> None:
    done = peftkit("show", "lora_tiny", "--json", "training.seed=3", cwd=tmp_path)
    (tmp_path / "again.yaml").write_text(done.stdout)
    again = peftkit("show", "again.yaml", "--json", cwd=tmp_path)
    assert again.stdout == done.stdout and json.loads(again.stdout)["training"]["seed"] == 3


def test_lists_print_a_row_per_line_with_the_name_first_and_no_header(tmp_path: Path) -> None:
    lines = peftkit("list", cwd=ROOT).stdout.splitlines()
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    about, file = rows["qlora_imdb"]
    assert about and file == "recipes/qlora_imdb.yaml" and "_imdb" not in rows


@pytest.mark.parametrize(
    "family", ["recipes", "strategies", "tasks", "data", "quantization", "metrics"]
)
def test_every_family_is_listed_as_text_and_as_json(family: str, tmp_path: Path) -> None:
    plain = peftkit("list", family, cwd=tmp_path).stdout.splitlines()
    rows = json.loads(peftkit("list", family, "--json", cwd=tmp_path).stdout)
    assert [line.split("\t")[0] for line in plain] == [row["name"] for row in rows]
    assert rows and all(row["about"] for row in rows)


def test_a_listed_recipe_has_its_description_or_its_parts_or_its_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipes").mkdir()
    texts = {
        "a": "base: lora_imdb\ndescription: The first one to try.\n",
        "b": "base: lora_imdb\nquantize: 4bit\n",
        "c": "base: nothing\n",
        "d": "model: [1\n",
        "e": "strategy: full\n",
    }
    for name, text in texts.items():
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text)
    rows = json.loads(peftkit("list", "--json", cwd=tmp_path).stdout)
    about = {row["name"]: row["about"] for row in rows}
    assert about["a"] == "The first one to try."
    model = "sentence-transformers/all-MiniLM-L6-v2"
    assert about["b"] == f"lora r=8 on 4bit; {model}; stanfordnlp/imdb"
    assert about["c"].startswith("recipes/c.yaml: base: no recipe is called 'nothing'")
    assert about["d"].startswith("recipes/d.yaml: is not a recipe (line 2")
    assert about["e"].startswith("full; no model")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    for typed in ("schema", "show lora_imdb"):
        command = f"{sys.executable} -m peftkit.cli {typed} | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.stderr == "" and len(done.stdout.splitlines()) == 1
        assert done.returncode in {0, 141}


def test_options_may_be_between_settings() -> None:
    typed = ["lora_imdb", "a=1", "--json", "b=2", "--runs", "x", "c=-1", "-n", "2"]
    options = parser().parse_args(["train", *typed])
    assert (options.recipe, options.settings) == ("lora_imdb", ["a=1", "b=2", "c=-1"])
    assert (options.json, options.runs, options.ranks) == (True, Path("x"), 2)
    options = run_parser().parse_args(["--runs", "x", "recipe=a", "--json", "b=2", "--rerun"])
    assert (options.settings, options.runs) == (["recipe=a", "b=2"], Path("x"))
    options = parser().parse_args(["predict", "run", "a text", "--json", "--", "-another"])
    assert options.texts == ["a text", "-another"] and options.json


def test_a_recipe_may_be_written_as_for_run_py() -> None:
    assert parser().parse_args(["show", "recipe=lora_tiny"]).recipe == "lora_tiny"


def test_the_arguments_of_train_are_passed_to_run_py() -> None:
    typed = ["train", "lora_tiny", "a=1", "--rerun", "b=[2, 3]", "--runs", "some where"]
    _, *passed = arguments(parser().parse_args(typed))
    options = run_parser().parse_args(passed)
    assert options.settings == ["recipe=lora_tiny", "a=1", "b=[2, 3]"]
    assert (options.runs, options.rerun, options.json) == (Path("some where"), True, False)


def test_ranks_are_started_by_torchrun_and_a_file_by_accelerate(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert starter(None, 4) == torchrun
    file = tmp_path / "a.yaml"
    with pytest.raises(RunError, match="there is no such file - see recipes/launch/"):
        starter(file, None)
    file.touch()
    assert starter(file, None) == ["accelerate.commands.launch", f"--config_file={file}"]
    assert starter(file, 2)[-1] == "--num_processes=2"


def test_a_recipe_is_checked_before_anything_is_launched(tmp_path: Path) -> None:
    done = peftkit("train", "lora_imdb", *WRONG, "-n", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, FAULTS)
    assert peftkit("train", "lora_tiny", "-n", "0", cwd=tmp_path).returncode == 2


def test_each_error_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def ends(error: BaseException) -> int:
        def work() -> None:
            raise error

        return guarded(work)

    assert ends(RunError("wrong - fix it")) == 2
    assert ends(RunStopped("stopped at step 3", 15)) == 143
    assert ends(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "error: wrong - fix it\nstopped at step 3\nstopped\n"
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_new_writes_a_recipe_that_show_can_read(tmp_path: Path) -> None:
    words = ["please send the bill again", "thank you kindly for your help"]
    rows = [f'"{words[i % 2]} {i}",{"billing" if i % 2 else "thanks"}' for i in range(40)]
    (tmp_path / "mails.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    done = peftkit("new", "mails.csv", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "recipes/mails.yaml"
    shown = peftkit("show", "mails", cwd=tmp_path)
    assert 'data.label\t"label"\trecipes/mails.yaml' in shown.stdout


def test_predicting_with_a_run_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = peftkit("predict", "runs/none", "a text", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs/none: is not a finished run")


def test_data_are_loaded_without_progress_bars_where_there_is_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"some text {i},{i % 2}\n" for i in range(50))
    )
    code = (
        "from peftkit.data.base import Data\n"
        "data = Data.parse({'kind': 'files', 'path': 'a.csv'}, 'data')\n"
        "splits = data.load(data.resolve(), {'text': True, 'label': True})\n"
        "splits.train.map(lambda row: row)\n"
    )
    done = python("-c", code, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
