"""The command line: ``rewriter passes``, ``check NAME``, ``plan NAME``, ``rewrite NAME``,
``show DIRECTORY``, ``compare NAME``, ``sweep PATTERN``, ``measure NAME WHAT`` and ``new-pass NAME``.

Exit codes, but for ``check``: 0 done; 1 refused, with one line ``error: …`` on stderr, or output that cannot be
written, or a sweep with rows that are not ok; 2 wrong usage; 130 interrupted.
With ``--json`` stdout holds one JSON document and nothing else, for errors too.

This module can be imported without typer and rich, so that :func:`main` can say what is missing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from rewriter import libraries
from rewriter.cli.encoding import write_what_can_be_encoded
from rewriter.cli.options import option, print_json
from rewriter.cli.stdout import output_written
from rewriter.errors import RewriterWarning
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
    if missing := libraries.not_installed(_NEEDED):
        print(f"error: the command line needs {', '.join(missing)}; install it with: {INSTALL}", file=sys.stderr)
        sys.exit(1)
    try:
        with output_written():
            if "--json" in sys.argv:
                sys.exit(_run_for_machines())
            application()()
    except KeyboardInterrupt:
        sys.exit(130)


def _run_for_machines() -> int:
    """Run a command with ``--json``, wrong usage of which is one JSON document too; return the exit code."""
    usage_error: type[Any] = typer.BadParameter.__mro__[1]  # typer has no public name for it
    try:
        code = application()(standalone_mode=False)
    except usage_error as error:
        message = " ".join(error.format_message().split())
        print_json({"error": {"type": "UsageError", "message": message}})
        print(f"error: {message}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _in_one_line(default: Callable[..., str]) -> Callable[..., str]:
    """Show our own warnings without a line of our source, which is no help on a command line."""

    def format_warning(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
        if issubclass(category, RewriterWarning):
            return f"warning: {message}\n"
        return default(message, category, *place, **line)

    return format_warning


def application() -> typer.Typer:
    """Return the commands as a typer application."""
    from rewriter.cli.check import check_command
    from rewriter.cli.compare import compare_command
    from rewriter.cli.measure import measure_command
    from rewriter.cli.new_pass import new_pass_command
    from rewriter.cli.passes import passes_command
    from rewriter.cli.plan import plan_command
    from rewriter.cli.rewrite import rewrite_command
    from rewriter.cli.show import show_command
    from rewriter.cli.sweep import sweep_command

    app = typer.Typer(
        name="rewriter",
        help="Apply published training guidelines to the vision model you already have.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if _shows_help() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options_of_all)
    app.command("passes")(passes_command)
    app.command("check")(check_command)
    app.command("plan")(plan_command)
    app.command("rewrite")(rewrite_command)
    app.command("show")(show_command)
    app.command("compare")(compare_command)
    app.command("sweep")(sweep_command)
    app.command("measure")(measure_command)
    app.command("new-pass")(new_pass_command)
    return app


def _shows_help() -> bool:
    """Whether help is requested: typer's rendering is slow to import, and errors do without it."""
    return len(sys.argv) == 1 or not {"-h", "--help"}.isdisjoint(sys.argv)


def _show_version(wanted: bool) -> None:
    if wanted:
        others = [f"{name} {version}" for name, version in libraries.versions(("torch", "timm")).items()]
        print(f"rewriter {__version__} ({', '.join(others)})")
        raise typer.Exit


_VERSION = Annotated[
    bool, option("--version", callback=_show_version, help="Show the version and exit.", is_eager=True)
]


def _options_of_all(version: _VERSION = False) -> None:
    pass
