"""What training a comparison tells on standard error: how many runs are there, and each that is finished."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from rewriter.comparison.run import Run
from rewriter.comparison.training import Setting
from rewriter.errors import ComparisonError
from rewriter.reporting.progress import has_bar, progress_bar
from rewriter.text import counted


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while runs are trained.

    Attributes:
        finished: how many runs are finished.
        wanted: of how many.
    """

    def __init__(self, finished: int, wanted: int) -> None:
        super().__init__(f"{finished} of {counted(wanted, 'run')} {'is' if finished == 1 else 'are'} finished")
        self.finished, self.wanted = finished, wanted


class RunProgress:
    """Tells of runs: on a terminal a bar with the time left, elsewhere a line for each one that is finished.

    Of several processes the first one tells, of its own runs.

    Args:
        setting: how runs are trained.
        wanted: how many runs there will be.
        kept: how many of them are in ``directory`` already.
        own: how many this process trains.
        directory: the run directory, if there is one.
        shown: False tells nothing.
    """

    def __init__(
        self, setting: Setting, *, wanted: int, kept: int, own: int, directory: Path | None, shown: bool
    ) -> None:
        self._setting, self._wanted, self._kept, self._own, self._directory = setting, wanted, kept, own, directory
        processes = setting.accelerator.num_processes
        self._alone = processes == 1
        self._shared = "" if self._alone else f" in {processes} processes; the first tells of its own {own}"
        self._shown = shown and setting.accelerator.process_index == 0
        self._finished = 0
        self._metric = setting.scoring.judged[0]

    def begin(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Tell what is to be done, and show a bar where there is a terminal; to be advanced at every training step.

        Raises:
            ComparisonError: there are no training batches.
        """
        train = self._setting.data.train
        steps = len(train) if train is not None else 0  # type: ignore[arg-type]
        if not steps:
            raise ComparisonError("there are no training batches")
        missing = self._wanted - self._kept
        if not missing:
            self._say(f"all {counted(self._wanted, 'run')} are in {self._directory}")
        elif self._kept:
            verb = "is" if self._kept == 1 else "are"
            there = f"{self._kept} of {counted(self._wanted, 'run')} {verb} in {self._directory}"
            self._say(f"{there}, {missing} to train{self._shared}")
        elif not has_bar():
            self._say(f"training {counted(missing, 'run')}{self._shared}")
        title = f"training {counted(self._own, 'run')}{'' if self._alone else ' of the first process'}"
        total = self._own * self._setting.recipe.epochs * steps
        return progress_bar(title, total, shown=self._shown and has_bar() and self._own > 0)

    def finished(self, run: Run) -> None:
        """Tell of a run that this process has trained."""
        self._finished += 1
        if has_bar():
            return
        number = self._kept + self._finished if self._alone else self._finished
        total, whose = (self._wanted, "") if self._alone else (self._own, " of the first process")
        seconds = f"{run.seconds:.{0 if run.seconds >= 10 else 1}f} s"
        value = f"{self._metric} {run.final.metrics[self._metric]:.4g}" if run.final else f"stopped: {run.stopped}"
        self._say(f"run {number} of {total}{whose}: {run.arm}, seed {run.seed}, {seconds}, {value}")

    def _say(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)
