"""Jobs in processes of their own, some side by side: each starts bare, and none takes another down with it."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from rlplatform.errors import RunError, UserError

Ask = Callable[[Any], Any]
PATIENCE = 60.0  # seconds that a process has for saving its run when all are to end


class Job(NamedTuple):
    """One call in a process of its own: `function(*arguments, ask)`.

    `ask(message)` hands a message to the process that runs the jobs and returns its answer, None when it is gone.
    """

    name: str  # of its log file
    function: Callable[..., Any]  # found by its module and name in the new process
    arguments: tuple[Any, ...]


class Done(NamedTuple):
    """A job that has ended: its result, or the sentence of why there is none."""

    job: Job
    result: Any
    error: str | None


def run(
    jobs: Iterable[Job | None], processes: int, logs: pathlib.Path, answer: Callable[[Job, Any], Any]
) -> Iterator[Done]:
    """Runs jobs, `processes` at a time, and gives each as it ends.

    A job is taken from `jobs` when a process is free, after what was given before it has been dealt with, so that it
    may depend on that. A process that dies is an error of its job alone. When the caller leaves early, by Ctrl-C for
    example, the processes get SIGTERM and save their runs; when the caller is killed, they end at once.

    Args:
        jobs: taken one by one; None says that the next one waits for one that is running.
        processes: at least 1.
        logs: the folder for `NAME.log`, what each process prints.
        answer: from a job and its message to what `ask` returns there.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs)
    busy: dict[Any, tuple[Job, Any]] = {}
    try:
        while True:
            while len(busy) < processes and (job := next(waiting, None)) is not None:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(job, theirs, logs / f"{job.name}.log"), name=job.name)
                with _single_threaded_blas():
                    process.start()
                theirs.close()
                busy[ours] = job, process
            if not busy:
                return
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for ours in ready:
                job, process = busy[ours]
                try:
                    kind, value = ours.recv()
                except (EOFError, OSError):
                    kind, value = "died", None
                if kind == "ask":
                    with contextlib.suppress(OSError):  # it has died since; that is read next
                        ours.send(answer(job, value))
                    continue
                del busy[ours]
                process.join()
                ours.close()
                if kind == "died":
                    value = f"its process {_how(process.exitcode)} (it has printed {logs / job.name}.log)"
                yield Done(job, value if kind == "result" else None, None if kind == "result" else value)
    finally:
        _end(busy)


@contextlib.contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Processes that are started inside have one thread for numpy's products, unless the environment says otherwise.

    Side by side they have no core for a second one: it would wait for work in a loop, on the core of another process.
    """
    missing = [
        name for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ
    ]
    os.environ.update(dict.fromkeys(missing, "1"))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _end(busy: dict[Any, tuple[Job, Any]]) -> None:
    """Lets the processes save, and waits for them."""
    for ours, (_, process) in busy.items():
        process.terminate()
        ours.close()  # whoever waits for an answer goes on without
    for _, process in busy.values():
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _how(code: int) -> str:
    if code >= 0:
        return f"has ended with exit code {code}"
    reason = "; the memory may have run out" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{reason}"


def _work(job: Job, connection: Any, log: pathlib.Path) -> None:
    """In the new process: calls the job's function and sends what came of it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        message = "result", job.function(*job.arguments, functools.partial(_ask, connection))
    except (UserError, RunError) as error:
        message = "error", str(error)
    except BaseException as error:
        traceback.print_exc()
        message = "error", f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # nobody waits for it any more
        connection.send(message)
    sys.stdout.flush()


def _ask(connection: Any, message: Any) -> Any:
    try:
        connection.send(("ask", message))
        return connection.recv()
    except (OSError, EOFError):
        return None


def _end_with_parent() -> None:
    """Ends this process when the one that has started it dies, however it dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def bar(total: int, unit: str, **options: Any) -> Any:
    """A progress bar of all jobs together, on standard error; none where that is no terminal: `say` is enough there."""
    return tqdm(total=total, unit=unit, dynamic_ncols=True, disable=None, file=sys.stderr, **options)


def say(sentence: str) -> None:
    """A line of its own on standard error, above the bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(sentence, file=sys.stderr, flush=True)
