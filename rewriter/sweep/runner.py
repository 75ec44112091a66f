"""The sweep as a function: choose names, ask workers, keep rows."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewriter.errors import SweepError
from rewriter.planning.selection import Preserve
from rewriter.sweep.pool import COMMAND, Pool
from rewriter.sweep.request import SweepRequest, versions_of_libraries
from rewriter.sweep.results import SweepFile
from rewriter.sweep.row import Row, Status
from rewriter.sweep.summary import summarise

_UNFINISHED = (Status.DIED, Status.TIMED_OUT)


@dataclass(frozen=True)
class Sweep:
    """Findings about many models.

    Attributes:
        request: what was asked of each.
        rows: one a model, in the order of the names.
        seconds: how long it took this time.
        resumed: how many rows were there before.
    """

    request: SweepRequest
    rows: tuple[Row, ...]
    seconds: float
    resumed: int = 0
    versions: dict[str, str] = field(default_factory=versions_of_libraries)

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def summary(self) -> dict[str, Any]:
        """Counts, times and extremes, as plain data."""
        return summarise(self.rows)

    def to_data(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "request": self.request.described(),
            "versions": self.versions,
            "seconds": round(self.seconds, 1),
            "resumed": self.resumed,
            "summary": self.summary(),
            "rows": [row.to_data() for row in self.rows],
        }


def select(patterns: Sequence[str], shard: tuple[int, int] = (1, 1)) -> list[str]:
    """Names of models, each once, in a stable order.

    Args:
        patterns: globs as :func:`zoo.names` takes them.
        shard: ``(i, n)``: of every ``n`` names the ``i``-th, counted from 1.

    Raises:
        SweepError: a pattern matches nothing, or there is no such shard.
    """
    from rewriter import zoo

    index, count = shard
    if not 1 <= index <= count:
        raise SweepError(f"shard: expected i/n with 1 <= i <= n, found {index}/{count}")
    names: dict[str, None] = {}
    for pattern in patterns:
        found = zoo.names(pattern)
        if not found:
            known = zoo.names(check=False)
            raise SweepError(f"no model matches {pattern!r}; {zoo.nearest(pattern, known)}")
        names.update(dict.fromkeys(found))
    return list(names)[index - 1 :: count]


def run(
    names: Sequence[str],
    passes: Any = None,
    *,
    preserve: Preserve = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
    numerics: bool = False,
    jobs: int | None = None,
    timeout: float = 300.0,
    output: str | Path | None = None,
    retry: bool = False,
    restart: bool = False,
    on_start: Callable[[str], None] = lambda name: None,
    on_row: Callable[[Row], None] = lambda row: None,
    command: Sequence[str] = COMMAND,
) -> Sweep:
    """Ask the same of every model; one that fails, dies or hangs costs its own row only.

    Args:
        names: names of models, as :func:`zoo.create` takes them.
        passes, preserve: as in :func:`rewriter.plan`.
        model_kwargs: options of the models' constructors.
        numerics: compare numbers on real weights instead of structure on meta tensors.
        jobs: number of worker processes; None for the number of cores.
        timeout: seconds for one model.
        output: result file; rows in it are not asked for again.
        retry: ask again where a worker died or ran out of time.
        restart: drop what the result file holds.
        on_start, on_row: called when a model begins, and with each row, those of the result file first.
        command: what starts a worker process.

    Raises:
        SweepError: the result file is of another sweep, or workers do not start.
        SelectorError: an unknown pass or option.
        KeyboardInterrupt: the workers are gone then, and the result file is whole.
    """
    started = time.perf_counter()
    if not timeout > 0 or (jobs is not None and jobs < 1):
        raise SweepError(f"expected a positive timeout and at least one job, found {timeout} and {jobs}")
    request = SweepRequest.of(passes, preserve, model_kwargs, numerics)
    names = list(dict.fromkeys(names))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(SweepFile(Path(output), request, restart)) if output is not None else None
        rows = {name: file.results[name] for name in names if name in file.results} if file is not None else {}
        if retry:
            rows = {name: row for name, row in rows.items() if row.status not in _UNFINISHED}
        resumed = len(rows)
        for row in rows.values():
            on_row(row)
        pool = Pool(request, jobs or os.cpu_count() or 1, timeout, command)
        events = stack.enter_context(contextlib.closing(pool.ask([name for name in names if name not in rows])))
        for event in events:
            if isinstance(event, str):
                on_start(event)
                continue
            if file is not None:
                file.append(event)
            rows[event.name] = event
            on_row(event)
    return Sweep(request, tuple(rows[name] for name in names), time.perf_counter() - started, resumed)
