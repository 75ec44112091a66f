"""``rewriter compare NAME``: did a rewrite help, hurt or change nothing?"""

from __future__ import annotations

import contextlib
import enum
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rewriter
from rewriter.cli.asked import Asked
from rewriter.cli.options import (
    CHECKPOINT,
    INPUT_SIZE,
    JSON,
    MODEL_KWARGS,
    ONLY,
    PASS,
    PRESERVE,
    PRETRAINED,
    SKIP,
    Preserve,
    argument,
    assignments,
    errors_reported,
    option,
    stdout_kept_clean,
)
from rewriter.text import counted

try:
    import typer
except ImportError:  # installed without the extra; rewriter.cli.commands.main() says so
    if not TYPE_CHECKING:
        typer = None

_DEFAULT_MODEL, _DEFAULT_DATA, _LABELLED_PHOTOS = "tf_efficientnet_lite0", "mnist5k", "photos"


class Level(enum.StrEnum):
    """What is compared; see :func:`rewriter.compare`."""

    EQUIVALENCE = "equivalence"
    TRAINED = "trained"
    TRAINING = "training"


class Budget(enum.StrEnum):
    """How long training may take."""

    SMOKE = "smoke"
    SMALL = "small"
    FULL = "full"


_NAME = Annotated[
    str | None,
    argument(help=f"A model's name, as for rewrite; {_DEFAULT_MODEL} with its trained weights if not given."),
]
_DATA = Annotated[
    str | None,
    option("--data", metavar="SOURCE", help=f"{_DEFAULT_DATA} if not given, {_LABELLED_PHOTOS} with --pretrained."),
]
_LEVEL = Annotated[list[Level] | None, option("--level", help="Repeatable; all that fit if not given.")]
_BUDGET = Annotated[Budget, option("--budget", help="smoke: under a minute; small: minutes; full: all images.")]
_SEEDS = Annotated[int | None, option("--seeds", min=1, help="How many, in place of the budget's.")]
_EPOCHS = Annotated[int | None, option("--epochs", min=1, help="In place of the budget's.")]
_RECIPE = Annotated[
    list[str] | None,
    option("--recipe", "-r", metavar="OPTION=VALUE", help="lr=1e-2, batch_size=128, hflip=0.5 …; repeatable."),
]
_OUTPUT = Annotated[
    Path | None,
    option("--output", "-o", metavar="DIRECTORY", help="Run directory: finished runs are kept, reports written."),
]
_RESTART = Annotated[bool, option("--restart", help="Train again what the run directory holds.")]
_DEVICE = Annotated[str | None, option("--device", help="cpu, or what accelerate finds if not given.")]
_ROOT = Annotated[Path | None, option("--root", metavar="FOLDER", help="Where the files of the data are.")]
_DOWNLOAD = Annotated[bool, option("--download", help="Download the data if they are not there.")]


def compare_command(
    name: _NAME = None,
    passes: PASS = None,
    data: _DATA = None,
    level: _LEVEL = None,
    budget: _BUDGET = Budget.SMALL,
    seeds: _SEEDS = None,
    epochs: _EPOCHS = None,
    recipe: _RECIPE = None,
    input_size: INPUT_SIZE = None,
    only: ONLY = None,
    skip: SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    model_kwargs: MODEL_KWARGS = None,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    output: _OUTPUT = None,
    restart: _RESTART = False,
    device: _DEVICE = None,
    root: _ROOT = None,
    download: _DOWNLOAD = False,
    as_json: JSON = False,
) -> None:
    """Compare a model before and after a rewrite: outputs, trained weights, and training with the same seeds.

    Several processes (torchrun --nproc-per-node N) share the seeds.
    """
    pretrained = pretrained or name is None
    asked = Asked(
        name or _DEFAULT_MODEL, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint
    )
    fields = assignments(recipe or (), "--recipe")
    fields |= {key: value for key, value in (("seeds", seeds), ("epochs", epochs)) if value is not None}
    data = data if data is not None else _LABELLED_PHOTOS if pretrained else _DEFAULT_DATA
    levels = [str(item) for item in level] if level else None
    with errors_reported(as_json), _interrupt_told(output, restart):
        from rewriter.cli.comparing import Made, checked
        from rewriter.cli.model import Wanted

        with stdout_kept_clean(as_json):
            wanted = Wanted(asked)
            batch_size = checked(wanted, data, str(budget), fields, device)
            source = rewriter.data.open_source(data, root=root, download=download)
            wanted.is_trained = Level.TRAINING in level if level else source.train is not None
            if wanted.is_trained:
                rewriter.data.check_trainable(source, batch_size)
            made = Made(wanted, source)
            not_written = None
            try:
                result = rewriter.compare(
                    made.original, made.rewritten(), source, name=wanted.name, levels=levels, budget=str(budget),
                    input_size=made.size, device=device, directory=output, restart=restart, **fields,
                )  # fmt: skip
            except rewriter.ReportError as error:
                result, not_written = error.comparison, error
        _leave_processes()
        if _is_first_process():
            print(result.to_json() if as_json else result)
            if wanted.new_classifier:
                print(f"note: training began with {wanted.new_classifier}", file=sys.stderr)
        if not_written is not None:  # the one document on stdout is the result
            print(f"error: {' '.join(str(not_written).split())}", file=sys.stderr)
            raise typer.Exit(1)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _leave_processes() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _interrupt_told(output: Path | None, restart: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if _is_first_process():
            print(f"interrupted{_what_is_kept(interrupt, output, restart)}", file=sys.stderr)
        raise


def _what_is_kept(interrupt: KeyboardInterrupt, output: Path | None, restart: bool) -> str:
    from rewriter.comparison.experiment import Interrupted
    from rewriter.comparison.run_directory import number_of_runs

    if not isinstance(interrupt, Interrupted):  # not while runs were trained
        if output is None:
            return "; nothing was kept: give -o DIRECTORY to keep finished runs"
        kept = number_of_runs(output)
        return f"; {counted(kept, 'finished run')} in {output}" if kept else "; there is no finished run to keep yet"
    if output is None:
        return f": {interrupt}, none is kept: give -o DIRECTORY to keep finished runs"
    if not interrupt.finished:
        return f": {interrupt}, so nothing was kept"
    without = " without --restart" if restart else ""
    return f": {interrupt} and kept in {output}; the same command{without} goes on from there"
