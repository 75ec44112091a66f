"""Python's garbage collector, paused."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Without Python's cyclic garbage collector.

    What a trace makes is alive until the plan is made, and every full collection would walk through all that the
    process holds, a tenth of a second with torch imported, to find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
