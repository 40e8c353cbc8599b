"""Workers: jobs in fresh processes, some at a time; other machines and a kill are reckoned with.

Nothing here goes by a clock. Who has a job holds the lock of its file, which the system takes back
from a process that dies: a job is taken by one, and a dead worker's by the next.
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

from peftkit.comparison.jobs import Job, Outcome, RunJob, do
from peftkit.errors import DiskError, PeftkitError, RunError, RunStopped

PRELOADED = ["peftkit.runs.pipeline", "peftkit.comparison.tuning", "peft", "bitsandbytes", "altair"]
"""Imported once, before the processes are forked: each would take seconds to do it itself."""
POLL_SECONDS = 1.0
"""Between looks at jobs that another process has."""
ATTEMPTS = 3
"""At a job whose process is killed; each goes on from the last checkpoint."""
Result = TypeVar("Result")
Told = Callable[[Job, Outcome], None]


@dataclass
class Worker:
    """A process at a job."""

    job: Job
    process: Any
    ear: Connection
    number: int
    """Its place among those that work at once: the GPU it has."""
    memory_kills: int
    """The system's count when it began."""


class Crew:
    """Processes that do jobs, `size` at a time; to be used in a `with` statement."""

    def __init__(self, size: int, output: Path, told: Told) -> None:
        self.size, self.output, self.told = size, output, told
        self.workers: list[Worker] = []
        self.settled: set[str] = set()
        """Jobs that need no more work here: done or failed."""
        self.failures: dict[str, str] = {}
        """What jobs that failed said."""
        self.kills: dict[str, int] = {}
        self.asked_to_stop: int | None = None
        self.no_disk = ""
        """What a process said that could not write."""
        self._before: dict[int, Any] = {}
        self.context = process_context()

    def __enter__(self) -> "Crew":
        for number in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread():
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        self.asked_to_stop = number
        self._stop_all()

    def _stop_all(self) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)

    def do(self, jobs: Sequence[Job]) -> None:
        """Do the jobs, whichever are not done, here or elsewhere.

        Raises `RunStopped` after a signal and `DiskError` where nothing can be written, once every
        process has ended, with a checkpoint if it can.
        """
        left = [job for job in jobs if job.name not in self.settled]
        while not self.asked_to_stop and not self.no_disk and (left or self.workers):
            left = [job for job in left if not self._is_settled(job)]
            self._start_some(left)
            self._wait()
        while self.workers:
            self._wait()
        if self.no_disk:
            raise DiskError(f"{self.no_disk}; the same command then goes on from here")
        if self.asked_to_stop:
            raise RunStopped("stopped - the same command goes on from here", self.asked_to_stop)

    def _is_settled(self, job: Job) -> bool:
        if job.name in self.settled:
            return True
        at_work = any(worker.job.name == job.name for worker in self.workers)
        if not at_work and job.done:  # another process may have done it
            self.settled.add(job.name)
            return True
        return False

    def _start_some(self, left: Sequence[Job]) -> None:
        """Give a job to each free place: one that no process has, here or elsewhere."""
        for job in left:
            if len(self.workers) == self.size:
                return
            if not any(worker.job.name == job.name for worker in self.workers) and not job.taken:
                self._start(job)

    def _start(self, job: Job) -> None:
        ear, mouth = self.context.Pipe(duplex=False)
        number = min(set(range(self.size)) - {worker.number for worker in self.workers})
        arguments = (job, mouth, self.output, number)
        process = self.context.Process(target=serve, args=arguments, name=job.name)
        kills = memory_kills()
        process.start()
        mouth.close()
        self.workers.append(Worker(job, process, ear, number, kills))

    def _wait(self) -> None:
        """Wait until some process ends, or a moment, and take note of what became of its job."""
        wait([worker.ear for worker in self.workers], timeout=POLL_SECONDS)
        for worker in list(self.workers):
            if worker.ear.poll() or not worker.process.is_alive():
                self.workers.remove(worker)
                self._take(worker)

    def _take(self, worker: Worker) -> None:
        job = worker.job
        try:
            outcome = worker.ear.recv()
            worker.process.join()
        except EOFError:
            worker.process.join()
            outcome = self._ended(worker)
        if outcome.state == "no disk" and not self.no_disk:
            self.no_disk = outcome.said
            self._stop_all()
        if outcome.state not in ("done", "failed"):
            return
        self.settled.add(job.name)
        if outcome.state == "failed":
            self.failures[job.name] = outcome.said
            if isinstance(job, RunJob):
                job.record_failure(outcome.said)
        self.told(job, outcome)

    def _ended(self, worker: Worker) -> Outcome:
        """What to make of a process that ended without a word."""
        name, code = worker.job.name, worker.process.exitcode
        if self.asked_to_stop or self.no_disk:
            return Outcome("stopped", "")
        if code == -signal.SIGKILL and memory_kills() > worker.memory_kills:
            return Outcome("failed", "out of memory: the system killed the process")
        self.kills[name] = self.kills.get(name, 0) + 1
        if self.kills[name] < ATTEMPTS:
            return Outcome("stopped", "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        what = f"its process ended {ATTEMPTS} times with {how}"
        return Outcome("failed", f"{what} - see {output_of(self.output, name)}")


def process_context() -> Any:
    """How processes are started: forked from one that has imported the libraries."""
    # a GPU's driver does not outlive a fork, and libraries may wake it when they are imported
    context: Any = multiprocessing.get_context("spawn" if gpus() else "forkserver")
    if not gpus():
        context.set_forkserver_preload(PRELOADED)
    return context


def elsewhere(work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` gives in a process of its own, or the error of a user's mistake."""
    context = process_context()
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(mouth, work, arguments))
    process.start()
    mouth.close()
    try:
        value, error = ear.recv()
    except EOFError:
        process.join()
        raise RunError(f"a process ended with exit code {process.exitcode}") from None
    process.join()
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def answer(mouth: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send what `work` gives, or a user's mistake."""
    try:
        mouth.send((work(*arguments), None))
    except PeftkitError as error:
        mouth.send((None, error))


def serve(job: Job, mouth: Connection, output: Path, number: int) -> None:
    """A worker's process: one job, its words in a file of its own, its outcome into the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the comparison hears it and asks us to stop
    threading.Thread(target=stop_with_parent, daemon=True).start()
    if gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus()[number % len(gpus())]
    output.mkdir(parents=True, exist_ok=True)
    with open(output_of(output, job.name), "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    outcome = do(job)
    print(f"{outcome.state}: {outcome.said}", flush=True)
    mouth.send(outcome)


def stop_with_parent() -> None:
    """Ask this process to stop when the comparison that it works for has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def output_of(folder: Path, name: str) -> Path:
    """The file that holds what a job printed."""
    return folder / f"{re.sub('[^a-zA-Z0-9.+-]+', '-', name)}.log"


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA calls them; without waking the driver."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [each for each in said.split(",") if each]
    return [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]


def memory_kills() -> int:
    """How often this system has killed a process for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:  # no Linux: such a kill is then told by its signal alone
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
