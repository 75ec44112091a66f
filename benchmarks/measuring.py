"""Times of steps that run in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """Something to be timed.

    Attributes:
        run: what is timed.
        before, after: what has to be done around it, not timed; ``after`` is given what ``run`` returned.
        milliseconds: one number a round.
        error: the name of what ``run`` raised; it is then not tried again.
    """

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    after: Callable[[Any], Any] = lambda result: None
    milliseconds: list[float] = field(default_factory=list)
    error: str = ""

    def take(self) -> None:
        """Run once and note the time, or the error."""
        try:
            self.before()
            started = time.perf_counter()
            result = self.run()
            self.milliseconds.append(1000 * (time.perf_counter() - started))
            self.after(result)
        except Exception as error:
            self.error = type(error).__name__

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one; both the only value where there is one."""
        if len(self.milliseconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high


def interleave(steps: dict[str, Step], rounds: int, seconds: float) -> None:
    """Take every step once a round, in alternating order, so that a machine whose speed drifts treats them alike.

    A first round fills the caches and does not count. A step that has used ``seconds`` is not taken again.
    """
    limit = 1000 * seconds
    for number in range(rounds + 1):
        gc.collect()
        for step in steps.values() if number % 2 else reversed(steps.values()):
            if not step.error and sum(step.milliseconds) < limit:
                step.take()
            if number == 0 and sum(step.milliseconds) < limit:
                step.milliseconds.clear()
