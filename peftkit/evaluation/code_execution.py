"""Grading of generated texts by the user's own command, run on each text with resource limits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, NamedTuple

from peftkit.errors import Fault, RecipeError
from peftkit.runtime.distributed import World, gather
from peftkit.tasks.base import Predictions, Task
from peftkit.tasks.language_modeling.base import LanguageModeling

MEMORY_BYTES = 4 << 30
"""Address space of the command and of each process that it starts."""
FILE_BYTES = 256 << 20
"""Maximum size of a file that it writes."""
PASSED, FAILED = 0, 1
"""The exit codes that are verdicts."""
# not `preexec_fn`, which is not safe beside torch's threads; 126 is no verdict
RUN_WITH_LIMITS = """
import os, resource, sys
try:
    for name, most in zip(("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE"), map(int, sys.argv[1:4])):
        what = getattr(resource, name)
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    os.execv(sys.argv[4], sys.argv[4:])
except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    sys.exit(126)
"""


class Grade(NamedTuple):
    """Whether a text passed."""

    passed: bool
    trouble: str = ""
    """Why the command gave no result; empty if it did."""


def check_grader(task: Task) -> None:
    """Raise `RecipeError` if the grader command does not exist."""
    how = task.generation
    if how is not None and how.grader is not None and shutil.which(how.grader[0]) is None:
        what = f"no command is called {how.grader[0]!r} here - install it, or give its path"
        raise RecipeError("the grader cannot run:", [Fault("task.generate.grader", what)])


def grade_predictions(
    task: Task, predictions: Predictions, rows: Any, world: World, whose: str
) -> Predictions:
    """Return the predictions with the number of samples per row that pass, on every rank; unchanged
    if there is no grader or nothing was generated. `whose` texts they are is for the note."""
    how = task.generation
    generator = task.text_generator
    if generator is None or how is None or how.grader is None or not any(predictions.samples):
        return predictions
    mine = [i for i, texts in enumerate(predictions.samples) if texts][world.rank :: world.size]
    questions = grader_inputs(generator, rows, mine)
    jobs = [
        (place, json.dumps({**question, "text": text}))
        for place, question in zip(mine, questions, strict=True)
        for text in predictions.samples[place] or ()
    ]
    command, seconds = resolve_command(how.grader), how.grader_timeout
    with ThreadPoolExecutor(max(1, world.threads)) as pool:
        found = list(pool.map(lambda job: run_grader(command, job[1], seconds), jobs))
    known = gather(world, [(job[0], each) for job, each in zip(jobs, found, strict=True)])
    passed = Counter(place for place, each in known if each.passed)
    counts = [passed[i] if texts else None for i, texts in enumerate(predictions.samples)]
    notes = (*predictions.notes, *failure_notes([each for _, each in known], whose))
    return replace(predictions, passed=counts, notes=notes)


def grader_inputs(task: LanguageModeling, rows: Any, places: Sequence[int]) -> list[dict[str, Any]]:
    """Return, per row, what the command reads besides the text: the row's name, the model's inputs
    and the reference."""
    columns = {name: [rows[i][name] for i in places] for name in rows.column_names}
    given = task.prompt_rows(columns)
    there = [name for name in task.inputs if name in given]
    return [
        {
            "row": columns["row"][i] if "row" in columns else None,
            "inputs": {name: given[name][i] for name in there if given[name][i] is not None},
            "reference": reference,
        }
        for i, reference in enumerate(task.references(columns))
    ]


def resolve_command(command: Sequence[str]) -> list[str]:
    """Return the command with absolute paths, so that it runs in another folder."""
    program = shutil.which(command[0]) or command[0]
    # not resolved: a link to python is a virtual environment's
    rest = [str(Path(part).absolute()) if Path(part).is_file() else part for part in command[1:]]
    return [str(Path(program).absolute()), *rest]


def run_grader(command: Sequence[str], question: str, seconds: float) -> Grade:
    """Run the command in an empty folder with `question` (JSON) on standard input; exit code 0
    passes, 1 fails.

    It has `seconds` of wall time and of CPU time, and gets neither this process's environment nor
    its terminal. Processes left in its session are killed.
    """
    limits = [str(number) for number in (ceil(seconds) + 1, MEMORY_BYTES, FILE_BYTES)]
    with (
        TemporaryDirectory(prefix="peftkit-grader-", ignore_cleanup_errors=True) as folder,
        TemporaryFile() as stdin,
        TemporaryFile() as complaints,
    ):
        stdin.write(question.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUN_WITH_LIMITS, *limits, *command],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            cwd=folder,
            env=grader_environment(folder),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Grade(False, f"ran longer than {seconds:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return read_exit_code(code, complaints)


def grader_environment(folder: str) -> Mapping[str, str]:
    """Return the command's environment variables, without this process's tokens and keys."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": folder, "TMPDIR": folder}


def read_exit_code(code: int, complaints: IO[bytes]) -> Grade:
    """Return the grade for an exit code."""
    if code in (PASSED, FAILED):
        return Grade(code == PASSED)
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 200))
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    how = f"ended with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    # in quotes: a generated text may have written what a terminal would obey
    return Grade(False, f"{how}, saying {lines[-1]!r}" if lines else how)


def failure_notes(found: Sequence[Grade], whose: str) -> Iterator[str]:
    """Yield a note on the texts without a result, with the most common reason."""
    troubles = Counter(each.trouble for each in found if each.trouble)
    if not troubles:
        return
    ((why, count),) = troubles.most_common(1)
    yield (
        f"the grader had no result for {troubles.total()} of {len(found)} texts of the {whose}, "
        f"which count as failed: in {count} it {why}"
    )
