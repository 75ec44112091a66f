"""What the commands share: options and their parsing, error reporting, and output.

Nothing here imports torch, nor do the modules that define the commands: help, usage errors and completion are fast.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError:  # installed without the extra; rewriter.cli.commands.main() says so
    if not TYPE_CHECKING:
        typer = None


def option(*arguments: Any, **settings: Any) -> Any:
    return typer.Option(*arguments, **settings) if typer else None


def argument(**settings: Any) -> Any:
    return typer.Argument(**settings) if typer else None


class Preserve(enum.StrEnum):
    """What a rewrite holds back; see :func:`rewriter.rewrite`."""

    AUTO = "auto"
    EVAL = "eval"
    NOTHING = "nothing"


MODEL_KWARGS = Annotated[
    list[str] | None,
    option("--model-kwargs", "-k", metavar="OPTION=VALUE", help="Option of the model's constructor; repeatable."),
]
PASS = Annotated[
    list[str] | None,
    option("--pass", metavar="PASS", help="dropout, or dropout:p=0.1,head_p=0.2; repeatable. All if not given."),
]
PRESERVE = Annotated[
    Preserve, option("--preserve", help="auto: trained weights keep their eval output; eval: always; nothing: never.")
]
NAME = Annotated[
    str,
    argument(
        help="A timm name; torchvision:NAME, smp:NAME, zoo:NAME, hf:CLASS, hf:ORG/NAME, diffusers:CLASS; "
        "file.py:factory or package.module:factory; a directory of rewriter.save."
    ),
]
INPUT_SIZE = Annotated[
    str | None, option("--input-size", metavar="SIZE", help="224, 224,320 (height, width) or 3,224,320; no batch.")
]
ONLY = Annotated[
    list[str] | None,
    option("--only", metavar="WHERE", help="Edit only here: module path, glob or re:PATTERN; repeatable."),
]
SKIP = Annotated[list[str] | None, option("--skip", metavar="WHERE", help="Leave this alone; repeatable.")]
PRETRAINED = Annotated[bool, option("--pretrained", help="Download the default weights.")]
CHECKPOINT = Annotated[
    Path | None, option("--checkpoint", metavar="FILE", help="Weights of the original: safetensors or torch.save.")
]
JSON = Annotated[bool, option("--json", help="One JSON document on stdout, nothing else.")]


_BOOLEANS = {"true": "True", "false": "False"}
"""Spellings used on a command line."""


def assignments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Parse ``["a=1", "b=x,c=(1,2)"]`` into ``{"a": 1, "b": "x", "c": (1, 2)}``."""
    values: dict[str, Any] = {}
    for text in texts:
        for part in re.split(r"[,\s]\s*(?=[A-Za-z_]\w*\s*=)", text.strip()):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name.isidentifier() or not value:
                raise typer.BadParameter(f"{option}: expected OPTION=VALUE, found {part!r}")
            try:
                values[name] = ast.literal_eval(_BOOLEANS.get(value.lower(), value))
            except (ValueError, SyntaxError):
                values[name] = value
    return values


def parsed_pass(text: str) -> dict[str, Any]:
    name, colon, options = text.partition(":")
    return {name.strip(): assignments([options], "--pass") if colon else {}}


@contextlib.contextmanager
def errors_reported(as_json: bool, exit_code: int = 1) -> Iterator[None]:
    """Turn a refusal into one line on stderr and ``exit_code``; an interrupt into exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if not _is_refusal(error):
            raise
        message = " ".join(str(error).split())
        if as_json and int(os.environ.get("RANK", 0)) == 0:  # only one of several processes reports
            print_json({"error": {"type": type(error).__name__, "message": message}})
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(exit_code) from None


def _is_refusal(error: Exception) -> bool:
    from rewriter.errors import RewriterError
    from rewriter.zoo import ModelZooError

    return isinstance(error, (RewriterError, ModelZooError))


@contextlib.contextmanager
def stdout_kept_clean(as_json: bool) -> Iterator[None]:
    """Redirect the output of libraries that print to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(data: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(data, indent=2))


@contextlib.contextmanager
def output_console() -> Iterator[Console]:
    """Yield the console for output; in a pipe or a file, lines have no trailing blanks."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        yield console
        return
    with console.capture() as captured:
        yield console
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def two_columns() -> Table:
    """Return a table of two columns, the first for names; as wide as needed."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def parsed_size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input-size: expected 224, 224,320 or 3,224,320, found {text!r}")
    numbers = tuple(int(part) for part in parts)
    return numbers * 2 if len(numbers) == 1 else numbers
