"""All runs of a training comparison: both arms with every seed, divided among processes, stored as they finish."""

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
    """Ctrl-C during training, after ``finished`` runs."""

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
    alone: results equal those of one process, whatever the model's norms do with a batch. All processes return all
    runs. An error of one process is raised in all, once the others have trained their seeds.

    Args:
        models, setting: what is trained, and how.
        identity: of the comparison, to detect runs of another one in ``directory``.
        directory: finished runs are written there, and reused unless ``restart`` is set.
        progress: report progress on standard error: a bar on a terminal, a line for each finished run elsewhere.

    Raises:
        ComparisonError: the directory belongs to another comparison, or cannot be written to.
        Interrupted: Ctrl-C, with the number of finished runs.
    """
    state = setting.accelerator.state
    seeds = range(setting.recipe.seeds)
    wanted = [(arm, seed) for seed in seeds for arm in _in_turn(seed)]
    with contextlib.ExitStack() as stack:
        file, is_first = None, state.process_index == 0
        # the first process creates what the others read, and they read it before it grows
        for turn in (is_first, not is_first):
            with errors_shared(setting.accelerator):
                if directory is not None and turn:
                    opened = RunFile(directory, identity, restart=restart and is_first, owner=is_first)
                    file = stack.enter_context(opened)
        done: dict[Any, Run] = {} if file is None else {key: file.results[key] for key in wanted if key in file.results}
        own = [key for key in wanted if key not in done and key[1] % state.num_processes == state.process_index]
        try:
            with (
                errors_shared(setting.accelerator),
                _told(setting, len(wanted), len(done), len(own), directory, progress) as (advance, tell),
            ):
                for run in _trained(own, models, setting, advance):
                    done[run.arm, run.seed] = run
                    if file is not None:
                        file.append(run)
                    tell(run)
        except KeyboardInterrupt as interrupt:
            if file is not None:
                file.read_again()
            finished = done if file is None else file.results
            raise Interrupted(sum(key in finished for key in wanted), len(wanted)) from interrupt
    done |= {(run.arm, run.seed): run for run in gather_object([done[key] for key in own])}
    return tuple(done[arm, seed] for seed in seeds for arm in ARMS)


def _in_turn(seed: int) -> tuple[str, str]:
    """Alternate which arm comes first, since the machine may then be cooler or memory less fragmented."""
    return (BEFORE, AFTER) if seed % 2 == 0 else (AFTER, BEFORE)


def _trained(
    keys: list[tuple[str, int]], models: ModelPairs, setting: Setting, advance: Callable[[], None]
) -> Iterator[Run]:
    for seed in dict.fromkeys(seed for _, seed in keys):
        pair = dict(zip(ARMS, models.pair(seed), strict=True))
        for arm in _in_turn(seed):
            if (arm, seed) in keys:
                yield train(pair.pop(arm), arm, seed, setting, advance)


@contextlib.contextmanager
def _told(
    setting: Setting, wanted: int, kept: int, own: int, directory: Path | None, progress: bool
) -> Iterator[tuple[Callable[[], None], Callable[[Run], None]]]:
    """Report on ``wanted`` runs, of which ``kept`` are in ``directory`` and this process trains ``own``.

    On a terminal a bar with the time left, elsewhere a line for each finished run. With several processes, the first
    one reports its own runs. Yields callbacks for every training step and for every finished run.
    """
    steps = 0 if setting.data.train is None else len(setting.data.train)  # type: ignore[arg-type]
    if not steps:
        raise ComparisonError("there are no training batches")
    processes, bar = setting.accelerator.num_processes, has_bar()
    shown = progress and setting.accelerator.process_index == 0
    whose = " of the first process" if processes > 1 else ""
    told_of = f" in {processes} processes; the first tells of its own {own}" if whose else ""
    number, total = (0, own) if whose else (kept, wanted)

    def say(line: str) -> None:
        if shown:
            print(line, file=sys.stderr, flush=True)

    def tell(run: Run) -> None:
        nonlocal number
        number += 1
        if not bar:
            metric = setting.scoring.judged[0]
            seconds = f"{run.seconds:.{0 if run.seconds >= 10 else 1}f} s"
            value = f"{metric} {run.final.metrics[metric]:.4g}" if run.final else f"stopped: {run.stopped}"
            say(f"run {number} of {total}{whose}: {run.arm}, seed {run.seed}, {seconds}, {value}")

    if kept == wanted:
        say(f"all {counted(wanted, 'run')} are in {directory}")
    elif kept:
        say(f"{kept} of {counted(wanted, 'run')} {_are(kept)} in {directory}, {wanted - kept} to train{told_of}")
    elif not bar:
        say(f"training {counted(wanted, 'run')}{told_of}")
    title = f"training {counted(own, 'run')}{whose}"
    with progress_bar(title, own * setting.recipe.epochs * steps, shown=shown and bar and own > 0) as advance:
        yield advance, tell


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
