"""A process with everything imported, which forks the processes of runs: one a second, not ten.

Each forked process is a real one: it has its own memory, can be killed, and leaves an exit code.
Reads one JSON command a line: {"start": job} answers with the pids of its ranks, {"wait": pids}
with their exit codes (negative: the signal that ended them).
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # what runs import only when they need it
import sklearn.metrics  # noqa: F401
import torch

import peftkit.cli.commands
import peftkit.runs.pipeline
import peftkit.runs.runner
from peftkit.training.callbacks import RecordingCallback


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage, among half a million objects of libraries
    print("ready", flush=True)
    for line in sys.stdin:
        said = json.loads(line)
        if "start" in said:
            answer = [start(said["start"], rank) for rank in range(said["start"]["ranks"])]
        else:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in said["wait"]]
        print(json.dumps(answer), flush=True)


def start(job: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70  # an error of ours, whose traceback is in the output
    try:
        code = work(job, rank)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def work(job: dict[str, Any], rank: int) -> int:
    out = os.open(f"{job['out']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.setsid()
    os.chdir(Path(job["out"]).parent)
    os.environ.update(job["environment"])
    if job["ranks"] > 1:  # what torchrun sets
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
        os.environ.update(WORLD_SIZE=str(job["ranks"]), LOCAL_WORLD_SIZE=str(job["ranks"]))
        os.environ.update(MASTER_PORT=str(job["port"]))
    # a third of such a run's time; real processes draw them in test_world
    peftkit.runs.pipeline.draw_learning_curves = lambda *_, **__: []
    exec(
        job["before"],
        {"at_step": at_step, "RecordingCallback": RecordingCallback, "signal": signal},
    )
    return peftkit.cli.commands.run_recipe(job["arguments"])


def at_step(step: int, number: int) -> None:
    """Send this process a signal when the step is done and before it is logged or saved."""
    after_step = RecordingCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), number)
        after_step(self, args, state, control, **rest)

    RecordingCallback.on_step_end = on_step_end  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
