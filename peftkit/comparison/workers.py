"""A pool of worker processes that run the jobs of a comparison, shared with other machines.

A worker holds the lock of its job's file. The system releases it if the worker dies, so that each
job runs once and another worker takes over that of a dead one, without any timeout.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from peftkit.comparison.jobs import Job, JobResult, RunJob, run_job
from peftkit.errors import DiskError, PeftkitError, RunError, RunStopped

PRELOADED = ["peftkit.runs.pipeline", "peftkit.comparison.tuning", "peft", "bitsandbytes", "altair"]
"""Modules to import before forking, which takes seconds in each process otherwise."""
POLL_SECONDS = 1.0
"""Interval between checks of jobs that another process runs."""
ATTEMPTS = 3
"""Attempts at a job whose process is killed; each resumes from the last checkpoint."""
Result = TypeVar("Result")
OnDone = Callable[[Job, JobResult], None]


@dataclass
class Worker:
    """A process and its job."""

    job: Job
    process: Any
    receiver: Connection
    number: int
    """Its number in the pool, which selects its GPU."""
    oom_kills: int
    """The system's count of out-of-memory kills at its start."""


class WorkerPool:
    """Runs jobs in `size` processes at a time; a context manager, which handles signals.

    Each process writes its output to a log in `output`; `on_done` is called with each result.
    """

    def __init__(self, size: int, output: Path, on_done: OnDone) -> None:
        self.size, self.output, self.on_done = size, output, on_done
        self.workers: list[Worker] = []
        self.settled: set[str] = set()
        """Names of the jobs that are done or failed."""
        self.failures: dict[str, str] = {}
        """The messages of failed jobs by name."""
        self.kills: dict[str, int] = {}
        self.stop_signal: int | None = None
        self.disk_error = ""
        self._handlers: dict[int, Any] = {}
        self.context = process_context()

    def __enter__(self) -> "WorkerPool":
        for number in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread():
                self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        self.stop_signal = number
        self._stop_all()

    def _stop_all(self) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs that are not done, and wait for those that other processes run.

        Raises `RunStopped` after a signal and `DiskError` if the disk cannot be written, once the
        processes have saved their checkpoints and ended.
        """
        left = [job for job in jobs if job.name not in self.settled]
        while not self.stop_signal and not self.disk_error and (left or self.workers):
            left = [job for job in left if not self._is_settled(job)]
            self._start_some(left)
            self._wait()
        while self.workers:
            self._wait()
        if self.disk_error:
            raise DiskError(f"{self.disk_error}; then run the same command to continue")
        if self.stop_signal:
            raise RunStopped("stopped - run the same command to continue", self.stop_signal)

    def _is_settled(self, job: Job) -> bool:
        if job.name in self.settled:
            return True
        running = any(worker.job.name == job.name for worker in self.workers)
        if not running and job.done:  # maybe by another process
            self.settled.add(job.name)
            return True
        return False

    def _start_some(self, left: Sequence[Job]) -> None:
        """Start jobs that no process runs, here or on another machine, until the pool is full."""
        for job in left:
            if len(self.workers) == self.size:
                return
            if not any(worker.job.name == job.name for worker in self.workers) and not job.taken:
                self._start(job)

    def _start(self, job: Job) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        number = min(set(range(self.size)) - {worker.number for worker in self.workers})
        arguments = (job, sender, self.output, number)
        process = self.context.Process(target=worker_main, args=arguments, name=job.name)
        kills = num_oom_kills()
        process.start()
        sender.close()
        self.workers.append(Worker(job, process, receiver, number, kills))

    def _wait(self) -> None:
        """Wait until a process ends, at most `POLL_SECONDS`, and collect its result."""
        wait([worker.receiver for worker in self.workers], timeout=POLL_SECONDS)
        for worker in list(self.workers):
            if worker.receiver.poll() or not worker.process.is_alive():
                self.workers.remove(worker)
                self._collect(worker)

    def _collect(self, worker: Worker) -> None:
        job = worker.job
        try:
            result = worker.receiver.recv()
            worker.process.join()
        except EOFError:
            worker.process.join()
            result = self._result_of_killed(worker)
        if result.state == "disk error" and not self.disk_error:
            self.disk_error = result.message
            self._stop_all()
        if result.state not in ("done", "failed"):
            return
        self.settled.add(job.name)
        if result.state == "failed":
            self.failures[job.name] = result.message
            if isinstance(job, RunJob):
                job.record_failure(result.message)
        self.on_done(job, result)

    def _result_of_killed(self, worker: Worker) -> JobResult:
        """The result of a process that ended without sending one."""
        name, code = worker.job.name, worker.process.exitcode
        if self.stop_signal or self.disk_error:
            return JobResult("stopped", "")
        if code == -signal.SIGKILL and num_oom_kills() > worker.oom_kills:
            return JobResult("failed", "out of memory: the system killed the process")
        self.kills[name] = self.kills.get(name, 0) + 1
        if self.kills[name] < ATTEMPTS:
            return JobResult("stopped", "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        what = f"its process ended {ATTEMPTS} times with {how}"
        return JobResult("failed", f"{what} - see {log_path(self.output, name)}")


def process_context() -> Any:
    """The multiprocessing context: forks from a process that has imported the libraries."""
    # CUDA does not survive a fork, and libraries may initialize it when they are imported
    context: Any = multiprocessing.get_context("spawn" if visible_gpus() else "forkserver")
    if not visible_gpus():
        context.set_forkserver_preload(PRELOADED)
    return context


def run_in_subprocess(work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of `work` in a process of its own; raises its `PeftkitError`."""
    context = process_context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        value, error = receiver.recv()
    except EOFError:
        process.join()
        raise RunError(f"a process ended with exit code {process.exitcode}") from None
    process.join()
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def send_result(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send the result of `work` or its `PeftkitError`."""
    try:
        sender.send((work(*arguments), None))
    except PeftkitError as error:
        sender.send((None, error))


def worker_main(job: Job, sender: Connection, output: Path, number: int) -> None:
    """Run one job in a worker's process, with its output in a log file; send the result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool handles it and sends a SIGTERM
    threading.Thread(target=stop_with_parent, daemon=True).start()
    if visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus()[number % len(visible_gpus())]
    output.mkdir(parents=True, exist_ok=True)
    with open(log_path(output, job.name), "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    result = run_job(job)
    print(f"{result.state}: {result.message}", flush=True)
    sender.send(result)


def stop_with_parent() -> None:
    """Send this process a SIGTERM when the process of the comparison has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def log_path(folder: Path, name: str) -> Path:
    """The log file of a job's output."""
    return folder / f"{re.sub('[^a-zA-Z0-9.+-]+', '-', name)}.log"


def visible_gpus() -> list[str]:
    """The CUDA device numbers that may be used, found without initializing CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each for each in visible.split(",") if each]
    return [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]


def num_oom_kills() -> int:
    """Processes that the system has killed for lack of memory; 0 if it does not count them."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:  # not Linux: such a kill then looks like any other
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
