"""How far long work is, on standard error: a bar on a terminal, if rich is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator


def has_bar() -> bool:
    """Whether :func:`progress_bar` shows a bar; where it does not, work that takes long tells by lines."""
    return sys.stderr.isatty() and importlib.util.find_spec("rich") is not None


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show ``title`` and a bar on standard error; gives a function that advances it by one step.

    Without rich the title is printed once. Where there is no terminal, nothing is shown.

    Args:
        title: what is going on.
        total: number of steps; None if it is not known.
        shown: False shows nothing at all.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    if not has_bar():
        print(title, file=sys.stderr, flush=True)
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
