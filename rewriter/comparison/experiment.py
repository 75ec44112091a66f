"""All runs of a training comparison: both arms with every seed, shared out among processes, kept as they finish."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewriter.comparison.place import errors_shared
from rewriter.comparison.run import AFTER, ARMS, BEFORE, Run
from rewriter.comparison.run_file import RunFile
from rewriter.comparison.run_progress import Interrupted, RunProgress
from rewriter.comparison.subject import Subject
from rewriter.comparison.training import Setting, train


def run_all(
    subject: Subject,
    setting: Setting,
    question: Mapping[str, Mapping[str, str]],
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
        subject: what is compared.
        setting: how it is trained.
        question: what the runs answer, to tell runs of another comparison in ``directory``.
        directory: finished runs are written there, and those that are there are not trained again.
        restart: train them again.
        progress: tell on standard error how far it is: a bar on a terminal, a line for each finished run elsewhere.

    Raises:
        ComparisonError: the directory is of another comparison, or cannot be written to.
        Interrupted: Ctrl-C, with the number of runs that are finished.
    """
    state = setting.accelerator.state
    seeds = range(setting.recipe.seeds)
    wanted = [(arm, seed) for seed in seeds for arm in _in_turn(seed)]
    with contextlib.ExitStack() as stack:
        file = None
        with errors_shared(setting.accelerator):
            if directory is not None and state.process_index == 0:
                file = stack.enter_context(RunFile(directory, question, restart=restart, owner=True))
        with errors_shared(setting.accelerator):  # all have read the file before the first new line
            if directory is not None and file is None:
                file = stack.enter_context(RunFile(directory, question, restart=False, owner=False))
        done: dict[Any, Run] = {} if file is None else {key: file.results[key] for key in wanted if key in file.results}
        own = [key for key in wanted if key not in done and key[1] % state.num_processes == state.process_index]
        told = RunProgress(
            setting, wanted=len(wanted), kept=len(done), own=len(own), directory=directory, shown=progress
        )
        try:
            with errors_shared(setting.accelerator), told.begin() as advance:
                for run in _trained(own, subject, setting, advance):
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
        from accelerate.utils import gather_object

        done |= {(run.arm, run.seed): run for run in gather_object([done[key] for key in own])}
    return tuple(done[arm, seed] for seed in seeds for arm in ARMS)


def _in_turn(seed: int) -> tuple[str, str]:
    """Neither arm always comes first, where the machine may be cooler or the memory less cut up."""
    return ARMS if seed % 2 == 0 else (AFTER, BEFORE)


def _trained(keys: list[tuple[str, int]], subject: Subject, setting: Setting, advance: Callable[[], None]) -> Any:
    for seed in dict.fromkeys(seed for _, seed in keys):
        models = dict(zip(ARMS, subject.pair(seed), strict=True))
        for arm in _in_turn(seed):
            if (arm, seed) in keys:
                yield train(models.pop(arm), arm, seed, setting, advance)
