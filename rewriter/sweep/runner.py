"""The sweep as a function: select names, run workers, record rows."""

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
    """Results for many models.

    Attributes:
        request: the checks of each.
        rows: one per model, in the order of the names.
        seconds: duration of this run.
        resumed: number of rows from earlier runs.
    """

    request: SweepRequest
    rows: tuple[Row, ...]
    seconds: float
    resumed: int = 0
    versions: dict[str, str] = field(default_factory=versions_of_libraries)

    @property
    def ok(self) -> bool:
        """Whether every row is ok."""
        return all(row.ok for row in self.rows)

    def summary(self) -> dict[str, Any]:
        """Return counts, times and extremes, as plain data."""
        return summarise(self.rows)

    def to_data(self) -> dict[str, Any]:
        """Return everything, as plain data for JSON."""
        return {
            "request": self.request.described(),
            "versions": self.versions,
            "seconds": round(self.seconds, 1),
            "resumed": self.resumed,
            "summary": self.summary(),
            "rows": [row.to_data() for row in self.rows],
        }


def select(patterns: Sequence[str], shard: tuple[int, int] = (1, 1)) -> list[str]:
    """Return names of models, each once, in a stable order.

    Args:
        patterns: globs as :func:`zoo.names` takes them.
        shard: ``(i, n)``: the ``i``-th of every ``n`` names, counted from 1.

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
    """Run the same checks on every model; one that fails, dies or hangs costs only its own row.

    Args:
        names: names of models, as :func:`zoo.create` takes them.
        passes, preserve: as in :func:`rewriter.plan`.
        model_kwargs: options of the models' constructors.
        numerics: compare numbers on real weights instead of structure on meta tensors.
        jobs: number of worker processes; None for the number of cores.
        timeout: seconds for one model.
        output: result file; models with a row in it are not checked again.
        retry: check models again whose worker died or timed out.
        restart: discard the content of the result file.
        on_start, on_row: called when a model starts, and with each row, those of the result file first.
        command: what starts a worker process.

    Raises:
        SweepError: the result file belongs to another sweep, or workers do not start.
        SelectorError: an unknown pass or option.
        KeyboardInterrupt: after ending the workers; the result file is complete up to there.
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
