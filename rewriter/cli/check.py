"""``rewriter check SUBJECT``: what the guidelines find, for people, continuous integration and code hosts."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from rewriter.cli.asked import Asked
from rewriter.cli.configuration import joined, read_configuration
from rewriter.cli.options import (
    CHECKPOINT,
    INPUT_SIZE,
    JSON,
    MODEL_KWARGS,
    ONLY,
    PASS,
    PRETRAINED,
    SKIP,
    Preserve,
    argument,
    errors_reported,
    option,
    stdout_kept_clean,
)


class Format(enum.StrEnum):
    """How findings are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"


_SUBJECT = Annotated[
    str | None,
    argument(help="A name as for plan; file.py:factory or package.module:factory, also of a loss; or the project's."),
]
_SELECT = Annotated[
    list[str] | None, option("--select", metavar="CODES", help="RW02 or RW0201,RW0203; repeatable. All if not given.")
]
_IGNORE = Annotated[list[str] | None, option("--ignore", metavar="CODES", help="Leave these out; repeatable.")]
_TRAINING = Annotated[
    Path | None, option("--training", metavar="FILE", help="Options of the training (YAML, JSON) to look at, too.")
]
_FORMAT = Annotated[Format | None, option("--format", help="How findings are written. [default: text]")]
_CONFIG = Annotated[
    Path | None,
    option("--config", metavar="FILE", help="Read [tool.rewriter] here, not in the nearest pyproject.toml."),
]
_DIFF = Annotated[bool, option("--diff", help="Show how --fix would change the source of methods.")]
_FIX = Annotated[bool, option("--fix", help="Rewrite with the passes that mend what is found; with -o.")]
_OUTPUT = Annotated[Path | None, option("--output", "-o", metavar="DIRECTORY", help="Where --fix writes the model.")]


def check_command(
    subject: _SUBJECT = None,
    select: _SELECT = None,
    ignore: _IGNORE = None,
    passes: PASS = None,
    only: ONLY = None,
    skip: SKIP = None,
    model_kwargs: MODEL_KWARGS = None,
    input_size: INPUT_SIZE = None,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    training: _TRAINING = None,
    form: _FORMAT = None,
    config: _CONFIG = None,
    diff: _DIFF = False,
    fix: _FIX = False,
    output: _OUTPUT = None,
    as_json: JSON = False,
) -> None:
    """List what the guidelines find, without changing anything.

    Exit codes: 0 nothing, or only notes and what has no effect; 1 findings; 2 wrong usage, or a subject that cannot be
    made or traced.
    """
    chosen = Format.JSON if as_json else form or Format.TEXT
    if as_json and form not in (None, Format.JSON):
        raise typer.BadParameter("--json is --format json; give one of them")
    if fix != (output is not None):
        raise typer.BadParameter("--fix writes a rewritten model: give -o DIRECTORY with it, and only with it")
    with errors_reported(chosen is Format.JSON, exit_code=2):
        settings = read_configuration(config)
        name = settings.get("subject", subject)
        if name is None:
            raise typer.BadParameter('SUBJECT: give one, or set subject = "…" in [tool.rewriter] of pyproject.toml')
        asked = Asked(
            name, settings.get("model-kwargs", model_kwargs), settings.get("input-size", input_size),
            settings.get("pass", passes), settings.get("only", only), settings.get("skip", skip), Preserve.NOTHING,
            pretrained, settings.path("checkpoint", checkpoint),
        )  # fmt: skip
        from rewriter.cli.checking import Checking

        work = Checking(asked, settings.ignored, shown=chosen is Format.TEXT)
        with stdout_kept_clean(chosen is not Format.TEXT):
            findings = work.find(
                joined(settings.get("select", select)), joined(settings.get("ignore", ignore)),
                settings.path("training", training),
            )  # fmt: skip
        match chosen:
            case Format.TEXT:
                print(findings)
            case Format.JSON:
                print(findings.to_json())
            case Format.GITHUB:
                print(findings.to_github(root=Path.cwd()))
            case Format.SARIF:
                print(findings.to_sarif(root=Path.cwd()))
        with stdout_kept_clean(chosen is not Format.TEXT):
            if diff:
                work.show_diff(findings)
            if output is not None:
                work.fix(findings, output)
    sys.stdout.flush()
    if findings.faults:
        raise typer.Exit(1)
