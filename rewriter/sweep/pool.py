"""Long-lived worker processes; one that dies or hangs costs one row and is replaced.

They are started by command line rather than with :mod:`multiprocessing` or libraries built on it, which would run the
user's script again in each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import sys
import tempfile
import threading
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Generator, Sequence
from typing import IO

from rewriter.errors import SweepError
from rewriter.sweep.request import SweepRequest
from rewriter.sweep.row import Row, Status, one_line
from rewriter.sweep.worker import READY

COMMAND = (sys.executable, "-P", "-m", "rewriter.sweep.worker")
"""The command that runs a worker."""

_STARTUP_SECONDS = 300.0
"""Maximum duration of a worker's imports."""

_LONGEST_ANSWER = 2**26
"""Maximum length of a line in bytes."""


class Pool:
    """Distributes names to worker processes.

    Args:
        request: the checks for every name.
        jobs: number of processes.
        timeout: seconds for one name.
        command: starts a process that calls :func:`rewriter.sweep.worker.serve`.
    """

    def __init__(self, request: SweepRequest, jobs: int, timeout: float, command: Sequence[str] = COMMAND) -> None:
        self._request = request
        self._jobs = jobs
        self._timeout = timeout
        self._command = command
        self._events: queue.SimpleQueue[str | Row | BaseException | None] = queue.SimpleQueue()

    def ask(self, names: Sequence[str]) -> Generator[str | Row, None, None]:
        """Yield a name when its check starts, and its row when it ends; closing the iterator ends all processes.

        Raises:
            SweepError: a worker could not be started.
        """
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._ask_all(deque(names)))
        # In a separate thread, since the caller may have a running event loop, as notebooks do.
        thread = threading.Thread(target=self._run, args=(loop, task), daemon=True)
        thread.start()
        try:
            while True:
                try:
                    event = self._events.get(timeout=0.5)  # an unlimited wait cannot be interrupted on every platform
                except queue.Empty:
                    continue
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            self._events.put(group.exceptions[0])
        finally:
            loop.close()
            self._events.put(None)

    async def _ask_all(self, waiting: deque[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._jobs, len(waiting))):
                group.create_task(self._feed(waiting))

    async def _feed(self, waiting: deque[str]) -> None:
        """Send names to one process, and to a replacement when it ends, until none is left."""
        while waiting:
            async with self._worker() as (process, errors):
                while waiting and process.returncode is None:
                    name = waiting.popleft()
                    self._events.put(name)
                    row = await self._row(process, name, errors)
                    self._events.put(row)
                    if row.status in (Status.DIED, Status.TIMED_OUT):
                        break

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[tuple[Process, IO[bytes]]]:
        """Yield a process that is ready for requests, and the file with its stderr."""
        with tempfile.TemporaryFile() as errors:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env=os.environ | _environment(),
                limit=_LONGEST_ANSWER,
            )
            try:
                answer = await _exchange(process, self._request.to_text(), _STARTUP_SECONDS)
                if answer is None or answer.strip() != READY:
                    silent = answer is None
                    why = f"it was silent for {_STARTUP_SECONDS:g} s" if silent else await _death(process, errors)
                    raise SweepError(f"a worker ({' '.join(self._command)}) did not start: {why}")
                yield process, errors
            finally:
                await _end(process)

    async def _row(self, process: Process, name: str, errors: IO[bytes]) -> Row:
        """Return the row of one name; if the process dies or times out, a row that says so."""
        errors.seek(0)
        errors.truncate()
        answer = await _exchange(process, name, self._timeout)
        if answer is None:
            return Row(name, Status.TIMED_OUT, f"timed out after {self._timeout:g} s")
        try:
            row = Row.from_data(json.loads(answer))
            if row.name == name:
                return row
        except ValueError:
            pass  # truncated, or no answer at all
        return Row(name, Status.DIED, await _death(process, errors))


async def _exchange(process: Process, text: str, timeout: float) -> str | None:
    """Send one line and receive one; ``""`` if the process ended, None if it was silent for ``timeout`` seconds."""
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(timeout):
            process.stdin.write(f"{text}\n".encode())
            await process.stdin.drain()
            return (await process.stdout.readline()).decode("utf-8", "replace")
    except TimeoutError:
        return None
    except (OSError, ValueError):  # the process is gone, or the line is too long
        return ""


async def _end(process: Process) -> None:
    """End the process, if it runs, and close its pipes."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
    await asyncio.sleep(0)  # for the pipes


async def _death(process: Process, errors: IO[bytes]) -> str:
    """Describe how the process ended, with the last lines it printed."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)
    code = process.returncode
    if code is None:
        how = "closed its answers, or gave one that is none"
    elif code < 0:
        name = {int(known): known.name for known in signal.Signals}.get(-code, str(-code))
        how = f"signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        how = f"exit code {code}"
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").split("\n")
    said = one_line(next((line for line in reversed(lines) if line.strip()), ""), 200)
    return f"{how}: {said}" if said else how


def _environment() -> dict[str, str]:
    """Return an environment with one thread and the modules that this process can import."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
