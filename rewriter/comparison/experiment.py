"""All runs of a training comparison: both arms with every seed, shared out among processes, kept as they finish."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from rewriter.comparison.devices import errors_shared
from rewriter.comparison.findings import AFTER, ARMS, BEFORE, Run
from rewriter.comparison.model_pairs import ModelPairs
from rewriter.comparison.run_directory import RunFile
from rewriter.comparison.training import Setting, train
from rewriter.errors import ComparisonError
from rewriter.reporting.progress import has_bar, progress_bar
from rewriter.text import counted


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while runs are trained, of which ``finished`` are finished."""

    def __init__(self, finished: int, wanted: int) -> None:
        super().__init__(f"{finished} of {counted(wanted, 'run')} {_are(finished)} finished")
        self.finished = finished


def run_all(
    models: ModelPairs,
    setting: Setting,
    identity: Mapping[str, Mapping[str, str]],
    *,
    directory: Path | None = None,
    restart: bool = False,
    progress: bool = True,
) -> tuple[Run, ...]:
    """Train both arms with every seed.

    Started by ``torchrun`` or ``accelerate launch``, each process takes every n-th seed, and trains both arms of it
    alone: the numbers are those of one process, whatever the model's norms do with a batch. All processes return all
    runs. An error of one process is raised in all, once the others have trained their seeds.

    Args:
        models, setting: what is trained, and how.
        identity: of the comparison, to tell runs of another one in ``directory``.
        directory: finished runs are written there; those that are there are trained again only with ``restart``.
        progress: tell on standard error how far it is: a bar on a terminal, a line for each finished run elsewhere.

    Raises:
        ComparisonError: the directory is of another comparison, or cannot be written to.
        Interrupted: Ctrl-C, with the number of runs that are finished.
    """
    state = setting.accelerator.state
    seeds = range(setting.recipe.seeds)
    wanted = [(arm, seed) for seed in seeds for arm in _in_turn(seed)]
    with contextlib.ExitStack() as stack:
        file, is_first = None, state.process_index == 0
        for turn in (
            is_first,
            not is_first,
        ):  # the first process makes what the others read, who read it before it grows
            with errors_shared(setting.accelerator):
                if directory is not None and turn:
                    opened = RunFile(directory, identity, restart=restart and is_first, owner=is_first)
                    file = stack.enter_context(opened)
        done: dict[Any, Run] = {} if file is None else {key: file.results[key] for key in wanted if key in file.results}
        own = [key for key in wanted if key not in done and key[1] % state.num_processes == state.process_index]
        told = _Told(setting, len(wanted), len(done), len(own), directory, progress)
        try:
            with errors_shared(setting.accelerator), told.begin() as advance:
                for run in _trained(own, models, setting, advance):
                    done[run.arm, run.seed] = run
                    if file is not None:
                        file.append(run)
                    told.finished(run)
        except KeyboardInterrupt as interrupt:
            if file is not None:
                file.read_again()
            finished = done if file is None else file.results
            raise Interrupted(sum(key in finished for key in wanted), len(wanted)) from interrupt
    if state.num_processes > 1:
        done |= {(run.arm, run.seed): run for run in gather_object([done[key] for key in own])}
    return tuple(done[arm, seed] for seed in seeds for arm in ARMS)


def _in_turn(seed: int) -> tuple[str, str]:
    """Neither arm always comes first, where the machine may be cooler or the memory less cut up."""
    return (BEFORE, AFTER) if seed % 2 == 0 else (AFTER, BEFORE)


def _trained(
    keys: list[tuple[str, int]], models: ModelPairs, setting: Setting, advance: Callable[[], None]
) -> Iterator[Run]:
    for seed in dict.fromkeys(seed for _, seed in keys):
        pair = dict(zip(ARMS, models.pair(seed), strict=True))
        for arm in _in_turn(seed):
            if (arm, seed) in keys:
                yield train(pair.pop(arm), arm, seed, setting, advance)


class _Told:
    """Tells of ``wanted`` runs, of which ``kept`` are in ``directory`` and this process trains its ``own``.

    On a terminal a bar with the time left, elsewhere a line for each run that is finished. Of several processes the
    first one tells, of its own runs.
    """

    def __init__(
        self, setting: Setting, wanted: int, kept: int, own: int, directory: Path | None, progress: bool
    ) -> None:
        self._setting, self._wanted, self._kept, self._own, self._directory = setting, wanted, kept, own, directory
        self._processes = setting.accelerator.num_processes
        self._whose = "" if self._processes == 1 else " of the first process"
        self._shown = progress and setting.accelerator.process_index == 0
        self._finished = 0

    def begin(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Tell what is to be done, and show a bar where there is a terminal; to be advanced at every training step."""
        train_data = self._setting.data.train
        steps = len(train_data) if train_data is not None else 0  # type: ignore[arg-type]
        if not steps:
            raise ComparisonError("there are no training batches")
        missing, wanted = self._wanted - self._kept, counted(self._wanted, "run")
        told_of = f" in {self._processes} processes; the first tells of its own {self._own}" if self._whose else ""
        if not missing:
            self._say(f"all {wanted} are in {self._directory}")
        elif self._kept:
            there = f"{self._kept} of {wanted} {_are(self._kept)} in {self._directory}"
            self._say(f"{there}, {missing} to train{told_of}")
        elif not has_bar():
            self._say(f"training {counted(missing, 'run')}{told_of}")
        title = f"training {counted(self._own, 'run')}{self._whose}"
        total = self._own * self._setting.recipe.epochs * steps
        return progress_bar(title, total, shown=self._shown and has_bar() and self._own > 0)

    def finished(self, run: Run) -> None:
        """Tell of a run that this process has trained."""
        self._finished += 1
        if has_bar():
            return
        number, total = (self._finished, self._own) if self._whose else (self._kept + self._finished, self._wanted)
        metric = self._setting.scoring.judged[0]
        seconds = f"{run.seconds:.{0 if run.seconds >= 10 else 1}f} s"
        value = f"{metric} {run.final.metrics[metric]:.4g}" if run.final else f"stopped: {run.stopped}"
        self._say(f"run {number} of {total}{self._whose}: {run.arm}, seed {run.seed}, {seconds}, {value}")

    def _say(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
