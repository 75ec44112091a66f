"""Progress of long-running work on standard error: a bar on a terminal, if rich is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rewriter import libraries


def has_bar() -> bool:
    """Whether :func:`progress_bar` shows a bar; otherwise long-running work reports in lines."""
    return sys.stderr.isatty() and libraries.is_installed("rich")


class Progress:
    """Work in progress: called after every step. Does nothing if no bar is shown."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def __call__(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def rename(self, title: str) -> None:
        """Show the current activity."""
        if self._bar is not None:
            self._bar.update(self._task, description=title)

    def say(self, line: str) -> None:
        """Print a permanent line above the bar, for problems."""
        if self._bar is not None:
            from rich.text import Text

            self._bar.console.print(Text(line, "yellow"))


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Progress]:
    """Show ``title`` and a bar on standard error; yields a callable that advances it by one step.

    Without rich the title is printed once. Without a terminal, nothing is shown.

    Args:
        title: the current activity.
        total: number of steps; None if unknown. For a single one there is no bar, only a sign of activity.
        shown: False shows nothing at all.
    """
    if not (shown and sys.stderr.isatty()):
        yield Progress()
        return
    if not has_bar():
        print(title, file=sys.stderr, flush=True)
        yield Progress()
        return
    from rich import progress
    from rich.console import Console

    text = progress.TextColumn("{task.description}", markup=False)
    columns = [progress.SpinnerColumn(), text]
    if total != 1:
        numbers = (progress.MofNCompleteColumn(), progress.TaskProgressColumn(), progress.TimeRemainingColumn())
        columns = [text, progress.BarColumn(), *numbers]
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task(title, total=total))
