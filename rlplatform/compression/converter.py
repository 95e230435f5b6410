"""The process that runs TensorFlow's converter, seen from here: it starts with the first conversion and stays a while.

To import TensorFlow again takes longer than to convert a small network.
"""

import atexit
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from rlplatform.compression import worker
from rlplatform.errors import RunError


class Converter:
    """One such process at a time, started when one is wanted; several threads may ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._said: Any = None  # the file of its standard error
        self._last_words = ""

    def run(self, folders: Sequence[pathlib.Path]) -> None:
        """Lets it do the jobs of folders, see `worker`.

        Raises:
            RunError: a job fails, or the process ends.
        """
        with self._lock:
            was_there = self._process is not None
            error = self._ask(folders)
            if error is None and was_there:  # It has ended for having had nothing to do, or enough.
                error = self._ask(folders)
            if error is None:
                error = self._last_words
        if error:
            raise RunError(f"the conversion failed: {error}")

    def start(self) -> None:
        """Lets it begin to import what it needs, beside what is done here until a conversion is wanted."""
        with self._lock:
            self._running()

    def end(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._forget(self._process)

    def _ask(self, folders: Sequence[pathlib.Path]) -> str | None:
        """What went wrong with the folders, empty if nothing did; None where the process has ended instead."""
        process = self._running()
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        line = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([str(folder) for folder in folders]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except BaseException:  # Ctrl-C: the next one must not be given the answer to this.
            process.kill()
            self._forget(process)
            raise
        if line:
            return str(json.loads(line))
        self._forget(process)
        return None

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._forget(self._process)
        if self._process is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(worker.__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        return self._process

    def _forget(self, process: "subprocess.Popen[str]") -> None:
        """Closes what is left of a process that has ended or was killed."""
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # What it was not told any more.
                if pipe is not None:
                    pipe.close()
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        self._said.close()
        self._process, self._last_words = None, lines[-1] if lines else f"it ended with {code}"


CONVERTER = Converter()
atexit.register(CONVERTER.end)
