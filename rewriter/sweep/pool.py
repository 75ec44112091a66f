"""Long-lived worker processes; one that dies or hangs costs one row and is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from rewriter.errors import SweepError
from rewriter.sweep.request import Request
from rewriter.sweep.row import Row, Status, one_line
from rewriter.sweep.worker import READY

COMMAND = (sys.executable, "-P", "-m", "rewriter.sweep.worker")
"""What runs a worker."""

_STARTUP_SECONDS = 300.0
"""How long the imports of a worker may take."""


class Pool:
    """Asks names of worker processes.

    Args:
        request: what is asked about every name.
        jobs: number of processes.
        timeout: seconds for one name.
        command: what starts a process that calls :func:`rewriter.sweep.worker.serve`.
    """

    def __init__(self, request: Request, jobs: int, timeout: float, command: Sequence[str] = COMMAND) -> None:
        self._request = request
        self._jobs = jobs
        self._timeout = timeout
        self._command = command
        self._workers: list[_Worker] = []
        self._stopped = threading.Event()

    def ask(self, names: Sequence[str]) -> Generator[str | Row, None, None]:
        """A name when its check begins, its row when that has ended; every process is gone when the iterator is.

        Raises:
            SweepError: a worker could not be started.
        """
        waiting = deque(names)
        events: queue.SimpleQueue[str | Row | Exception | None] = queue.SimpleQueue()
        self._workers = [_Worker(self._command, self._request) for _ in range(min(self._jobs, len(names)))]
        threads = [
            threading.Thread(target=self._feed, args=(worker, waiting, events), daemon=True) for worker in self._workers
        ]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                try:
                    event = events.get(timeout=0.5)  # a wait without end could not be interrupted everywhere
                except queue.Empty:
                    continue
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    running -= 1
                else:
                    yield event
        finally:
            self._stopped.set()
            for worker in self._workers:
                worker.kill()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _feed(self, worker: _Worker, waiting: deque[str], events: queue.SimpleQueue[Any]) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    name = waiting.popleft()
                except IndexError:
                    break
                worker.start(self._stopped)
                events.put(name)
                row = worker.ask(name, self._timeout)
                if not self._stopped.is_set():
                    events.put(row)
        except Exception as error:
            events.put(error)
        finally:
            worker.kill()
            events.put(None)


class _Worker:
    """One process; started again by :meth:`start` after its end."""

    def __init__(self, command: Sequence[str], request: Request) -> None:
        self._command = command
        self._request = request
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._lock = threading.Lock()

    def start(self, stopped: threading.Event) -> None:
        """Start the process unless it runs, and wait until it can be asked.

        Raises:
            SweepError: it ended before it could be asked.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        with self._lock:
            if stopped.is_set():
                return
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill()
            self._process = subprocess.Popen(
                list(self._command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | _environment(),
            )
        answer, timed_out = self._exchange(self._request.to_text(), _STARTUP_SECONDS)
        if answer.strip() != READY and not stopped.is_set():
            why = f"it was silent for {_STARTUP_SECONDS:g} s" if timed_out else self._death()
            raise SweepError(f"a worker ({' '.join(self._command)}) did not start: {why}")

    def ask(self, name: str, timeout: float) -> Row:
        """The row of one name; if the process dies or is silent for ``timeout`` seconds, a row that says so."""
        if self._errors is not None:
            self._errors.seek(0)
            self._errors.truncate()
        answer, timed_out = self._exchange(name, timeout)
        try:
            row = Row.from_data(json.loads(answer))
            if row.name == name and not timed_out:
                return row
        except ValueError:
            pass  # cut short, or no answer at all
        if timed_out:
            row = Row(name, Status.TIMED_OUT, f"timed out after {timeout:g} s")
        else:
            row = Row(name, Status.DIED, self._death())
        self.kill()
        return row

    def kill(self) -> None:
        """End the process, if there is one, and let go of its pipes."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for file in (process.stdin, process.stdout, self._errors):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()

    def _exchange(self, text: str, timeout: float) -> tuple[str, bool]:
        """One line there and one back; ``""`` if the process ended, and whether that was for its silence."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return "", False
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            return process.stdout.readline().decode("utf-8", "replace"), timed_out.is_set()
        except (OSError, ValueError):  # the process is gone, or kill() closed the pipes
            return "", timed_out.is_set()
        finally:
            timer.cancel()

    def _death(self) -> str:
        """How the process ended, and the last that it said."""
        process = self._process
        if process is None:
            return "ended by the sweep"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        if code is None:
            how = "closed its answers, or gave one that is none"
        elif code < 0:
            how = f"signal {_signal_name(-code)}"
            how += " (out of memory?)" if -code == getattr(signal, "SIGKILL", None) else ""
        else:
            how = f"exit code {code}"
        said = self._last_words()
        return f"{how}: {said}" if said else how

    def _last_words(self) -> str:
        try:
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").split("\n")
        except (OSError, ValueError):
            return ""
        return one_line(next((line for line in reversed(lines) if line.strip()), ""), 200)


def _environment() -> dict[str, str]:
    """One thread, and the modules that this process sees."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
