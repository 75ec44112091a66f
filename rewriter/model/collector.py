"""Pause Python's garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Context manager that pauses Python's cyclic garbage collector.

    What a trace creates lives until the plan is made, and every full collection would traverse everything in the
    process, which takes a tenth of a second with torch imported, and find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
