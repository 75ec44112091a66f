"""The command line: ``rewriter passes``, ``plan NAME``, ``rewrite NAME``, ``compare NAME`` and ``sweep PATTERN``.

Exit codes: 0 done; 1 refused, with one line ``error: …`` on stderr, or output that cannot be written, or a sweep with
rows that are not ok; 2 wrong usage; 130 interrupted.
With ``--json`` stdout holds one JSON document and nothing else, for errors too.

This module can be imported without typer and rich, so that :func:`main` can say what is missing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torch import nn

import rewriter
from rewriter.cli.encoding import write_what_can_be_encoded
from rewriter.cli.model import CHECKPOINT, INPUT_SIZE, NAME, ONLY, PRETRAINED, SKIP, Wanted, Work
from rewriter.cli.options import (
    JSON,
    MODEL_KWARGS,
    PASS,
    PRESERVE,
    Preserve,
    errors_reported,
    option,
    output_console,
    stdout_kept_clean,
)
from rewriter.cli.output import (
    show_diff,
    show_pass,
    show_saved,
    show_seconds,
    show_sites,
    show_skipped,
    show_verdict,
)
from rewriter.cli.stdout import output_written
from rewriter.edit.classes import class_name, original_class
from rewriter.errors import RewriterWarning
from rewriter.guideline.base import Pass
from rewriter.guideline.registry import installed_passes
from rewriter.planning.record import records_of
from rewriter.storage.directory import check_target
from rewriter.version import __version__

try:
    import typer
except ImportError:  # installed without the extra; main() says so
    if not TYPE_CHECKING:
        typer = None

INSTALL = 'pip install "rewriter[cli]"'
_NEEDED = ("typer", "rich", "timm")


def main() -> None:
    """Entry point of the ``rewriter`` command."""
    write_what_can_be_encoded()
    warnings.formatwarning = _in_one_line(warnings.formatwarning)
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        print(f"error: the command line needs {', '.join(missing)}; install it with: {INSTALL}", file=sys.stderr)
        sys.exit(1)
    try:
        with output_written():
            application()()
    except KeyboardInterrupt:
        sys.exit(130)


def _in_one_line(default: Callable[..., str]) -> Callable[..., str]:
    """Our own warnings without a line of our source, which is no help on a command line."""

    def format_warning(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
        if issubclass(category, RewriterWarning):
            return f"warning: {message}\n"
        return default(message, category, *place, **line)

    return format_warning


def application() -> typer.Typer:
    """The commands, as a typer application."""
    from rewriter.cli.compare import compare_command
    from rewriter.cli.sweep import sweep_command

    app = typer.Typer(
        name="rewriter",
        help="Apply published training guidelines to the vision model you already have.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options_of_all)
    app.command("passes")(passes_command)
    app.command("plan")(plan_command)
    app.command("rewrite")(rewrite_command)
    app.command("compare")(compare_command)
    app.command("sweep")(sweep_command)
    return app


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification
        return False


def _show_version(wanted: bool) -> None:
    if wanted:
        libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
        print(f"rewriter {__version__} ({', '.join(libraries)})")
        raise typer.Exit


_VERSION = Annotated[
    bool, option("--version", callback=_show_version, help="Show the version and exit.", is_eager=True)
]
_DIFF = Annotated[bool, option("--diff", help="Show how the source of methods changes.")]
_OUTPUT = Annotated[Path | None, option("--output", "-o", metavar="DIRECTORY", help="Write the rewritten model here.")]
_NO_VERIFY = Annotated[bool, option("--no-verify", help="Do not run the model to check the passes' contracts.")]


def _options_of_all(version: _VERSION = False) -> None:
    pass


def passes_command(as_json: JSON = False) -> None:
    """List the passes: what each does, its options, what it preserves, and where the rule comes from."""
    with errors_reported(as_json):
        found = [_described(cls) for cls in installed_passes().values()]
        if as_json:
            print(json.dumps(found, indent=2))
            return
        with output_console() as console:
            for number, item in enumerate(found):
                if number:
                    console.print()
                show_pass(console, item)


def plan_command(
    name: NAME,
    model_kwargs: MODEL_KWARGS = None,
    input_size: INPUT_SIZE = None,
    passes: PASS = None,
    only: ONLY = None,
    skip: SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    diff: _DIFF = False,
    as_json: JSON = False,
) -> None:
    """Show what a rewrite would do, where and why, without doing it."""
    wanted = Wanted(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        work = Work()
        with stdout_kept_clean(as_json):
            entry = wanted.create(work, meta=not pretrained and checkpoint is None)
            with work.step("plan", f"tracing and planning {name}"):
                made = rewriter.plan(entry.model, **wanted.arguments(entry))
            if wanted.needs_values(made) and any(parameter.is_meta for parameter in entry.model.parameters()):
                entry = wanted.create(work)
                with work.step("plan", f"measuring and planning {name}"):
                    made = rewriter.plan(entry.model, **wanted.arguments(entry))
        if as_json:
            print(made.to_json())
            return
        with output_console() as console:
            wanted.show(console, entry, made)
            show_sites(console, made, done=False)
            if diff:
                show_diff(console, made, entry.model)
            show_skipped(console, made)
            show_seconds(console, work.seconds)


def rewrite_command(
    name: NAME,
    output: _OUTPUT = None,
    model_kwargs: MODEL_KWARGS = None,
    input_size: INPUT_SIZE = None,
    passes: PASS = None,
    only: ONLY = None,
    skip: SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    no_verify: _NO_VERIFY = False,
    as_json: JSON = False,
) -> None:
    """Rewrite a model, check what it must preserve, and report; with -o, write it to a directory."""
    wanted = Wanted(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        work = Work()
        with stdout_kept_clean(as_json):
            if output is not None:
                check_target(output)
            entry = wanted.create(work)
            steps = "tracing, planning and rewriting" if no_verify else "tracing, planning, rewriting and verifying"
            with work.step("rewrite", f"{steps} {name}"):
                arguments = wanted.arguments(entry)
                model = rewriter.rewrite(entry.model, **arguments, verify=not no_verify)
            record = records_of(model)[-1]
            del work.seconds["rewrite"]  # the record tells its parts
            work.seconds |= record.seconds
            recipe = wanted.recipe(entry, record) if output is not None else None
            if output is not None:
                with work.step("save", f"writing {output}"):
                    rewriter.save(model, output, recipe=recipe)
        if as_json:
            print(json.dumps(_rewrite_as_data(wanted, model, output, work.seconds), indent=2))
            return
        with output_console() as console:
            wanted.show(console, entry, record.plan)
            show_sites(console, record.plan, done=True)
            show_diff(console, record.plan, entry.model)
            show_skipped(console, record.plan)
            show_verdict(console, record)
            show_seconds(console, work.seconds)
            if output is not None:
                show_saved(console, output, rebuilds=recipe is not None, name=type(entry.model).__name__)


def _described(cls: type[Pass]) -> dict[str, Any]:
    options = [
        {"name": f.name, "type": str(f.type), "default": None if f.default is dataclasses.MISSING else f.default}
        for f in dataclasses.fields(cls)
    ]
    contract = dataclasses.asdict(cls.contract)
    return {
        "name": cls.name, "summary": cls.summary, "options": options, "contract": contract,
        "preserves": str(cls.contract), "paper": cls.paper, "after": list(cls.after),
    }  # fmt: skip


def _rewrite_as_data(
    wanted: Wanted, model: nn.Module, output: Path | None, seconds: dict[str, float]
) -> dict[str, Any]:
    report = rewriter.report(model)
    return {
        "model": wanted.name,
        "kwargs": {key: value if _is_json(value) else repr(value) for key, value in wanted.model_kwargs.items()},
        "class": class_name(original_class(type(model))),
        "applied": len(report.applied),
        "inactive": len(report.inactive),
        "skipped": len(report.skipped),
        "verified": report.verified,
        "report": json.loads(report.to_json()),
        "milliseconds": {step: round(1000 * value, 1) for step, value in seconds.items()},
        "directory": None if output is None else str(output),
    }


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
