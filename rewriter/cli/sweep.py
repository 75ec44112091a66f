"""``rewriter sweep PATTERN``: rewrite many models and show the results."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rewriter.cli.options import (
    JSON,
    MODEL_KWARGS,
    PASS,
    PRESERVE,
    Preserve,
    argument,
    assignments,
    errors_reported,
    option,
    output_console,
    parsed_pass,
    print_json,
    stdout_kept_clean,
    two_columns,
)
from rewriter.errors import SweepError

if TYPE_CHECKING:
    from rewriter.sweep import Row, Sweep

try:
    import typer
    from rich.padding import Padding
    from rich.text import Text
except ImportError:  # installed without the extra; rewriter.cli.commands.main() says so
    if not TYPE_CHECKING:
        typer = None

_PATTERNS = Annotated[
    list[str], argument(metavar="PATTERN...", help="Globs over names: 'resnet*', 'torchvision:*', 'zoo:*', 'hf:*'.")
]
_OUTPUT = Annotated[
    Path | None,
    option("--output", "-o", metavar="FILE", help="Result file (JSON lines); rows in it are not asked for again."),
]
_MARKDOWN = Annotated[Path | None, option("--markdown", metavar="FILE", help="Write a table in Markdown here.")]
_NUMERICS = Annotated[
    bool, option("--numerics", help="Compare numbers on real weights; otherwise structure, on meta tensors.")
]
_SHARD = Annotated[str, option("--shard", metavar="I/N", help="Of every N models the I-th, from 1.")]
_JOBS = Annotated[int | None, option("--jobs", "-j", min=1, help="Worker processes; the number of cores if not given.")]
_TIMEOUT = Annotated[float, option("--timeout", metavar="SECONDS", min=0.1, help="For one model.")]
_RETRY = Annotated[bool, option("--retry", help="Ask again where a worker died or ran out of time.")]
_RESTART = Annotated[bool, option("--restart", help="Drop what the result file holds.")]


def sweep_command(
    patterns: _PATTERNS,
    passes: PASS = None,
    preserve: PRESERVE = Preserve.AUTO,
    model_kwargs: MODEL_KWARGS = None,
    numerics: _NUMERICS = False,
    shard: _SHARD = "1/1",
    jobs: _JOBS = None,
    timeout: _TIMEOUT = 300.0,
    output: _OUTPUT = None,
    retry: _RETRY = False,
    restart: _RESTART = False,
    markdown: _MARKDOWN = None,
    as_json: JSON = False,
) -> None:
    """Plan, apply, verify and undo on every model that matches, each in a worker process.

    Exit code 0 if every row is ok, 1 if one is not or the sweep was refused, 130 if interrupted.
    """
    part = _parsed_shard(shard)
    asked = [parsed_pass(text) for text in passes] if passes else None
    options = assignments(model_kwargs or (), "--model-kwargs")
    with errors_reported(as_json):
        from rewriter import sweep
        from rewriter.guideline.registry import resolve_passes

        with stdout_kept_clean(as_json):
            resolved = None if asked is None else resolve_passes(asked)
            _check_writable(markdown)
            names = sweep.select(patterns, part)
            with _progress(names, output) as (on_start, on_row):
                done = sweep.run(
                    names, resolved, preserve=preserve.value, model_kwargs=options, numerics=numerics, jobs=jobs,
                    timeout=timeout, output=output, retry=retry, restart=restart, on_start=on_start, on_row=on_row,
                )  # fmt: skip
            if markdown is not None:
                from rewriter.sweep.table import markdown as as_markdown

                try:
                    markdown.write_text(as_markdown(done), encoding="utf-8")
                except OSError as error:
                    raise SweepError(f"{markdown} cannot be written: {error.strerror}") from error
        if as_json:
            print_json(done.to_data())
        else:
            _show(done)
    if not done.ok:
        raise typer.Exit(1)


def _parsed_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"--shard: expected I/N with 1 <= I <= N, such as 2/4, found {text!r}")
    return int(found[1]), int(found[2])


def _check_writable(path: Path | None) -> None:
    """Check before hours of work, not after."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise SweepError(f"{path} cannot be written: expected a file in a directory that exists. Give another file.")


@contextlib.contextmanager
def _progress(names: list[str], output: Path | None) -> Iterator[Any]:
    """Show, on a terminal only, what runs, how many are done and the time left."""
    from rewriter.reporting.progress import progress_bar

    done = 0

    def on_row(row: Row) -> None:
        nonlocal done
        done += 1
        bar()
        if not row.ok:
            bar.say(f"{row.name}: {row.status}: {row.error}")

    with progress_bar("starting", len(names)) as bar:
        try:
            yield bar.rename, on_row
        except KeyboardInterrupt:
            kept = f"; {output} holds them, the same command goes on" if output is not None else ""
            print(f"interrupted: {done} of {len(names)} models done{kept}", file=sys.stderr)
            raise


def _show(done: Sweep) -> None:
    from rewriter.sweep.table import summary_lines

    with output_console() as console:
        table = two_columns()
        for name, value in summary_lines(done):
            table.add_row(name, value)
        console.print(table)
        for row in done.rows:
            if not row.ok:
                console.print(Text.assemble("\n", (row.name, "bold"), f"  {row.status}"))
                console.print(Padding(Text(row.error or "", overflow="fold"), (0, 0, 0, 2)))
