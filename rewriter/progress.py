"""A progress bar on the terminal, if there is one and rich is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show ``title`` and a bar on standard error; gives a function that advances it by one step.

    Where there is no terminal, the title is printed once.

    Args:
        title: what is going on.
        total: number of steps; None if it is not known.
        shown: False shows nothing at all.
    """
    if not shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        Console = None  # type: ignore[assignment, misc]
    if Console is None or not sys.stderr.isatty():
        print(title, file=sys.stderr)
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
