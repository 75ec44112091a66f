"""How far long work is, on standard error: a bar on a terminal, if rich is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rewriter import libraries


def has_bar() -> bool:
    """Whether :func:`progress_bar` shows a bar; where it does not, work that takes long tells by lines."""
    return sys.stderr.isatty() and libraries.is_installed("rich")


class Progress:
    """Work that goes on: called after every step. Where no bar is shown nothing is told."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def __call__(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def rename(self, title: str) -> None:
        """Show what is going on now."""
        if self._bar is not None:
            self._bar.update(self._task, description=title)

    def say(self, line: str) -> None:
        """A line above the bar that stays, for what went wrong."""
        if self._bar is not None:
            from rich.text import Text

            self._bar.console.print(Text(line, "yellow"))


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Progress]:
    """Show ``title`` and a bar on standard error; gives what advances it by one step when it is called.

    Without rich the title is printed once. Where there is no terminal, nothing is shown.

    Args:
        title: what is going on.
        total: number of steps; None if it is not known. Of a single one there is no bar, only a sign that it goes on.
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
