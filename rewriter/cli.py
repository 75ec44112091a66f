"""The command line: ``rewriter passes``, ``plan NAME``, ``rewrite NAME -o DIRECTORY`` and ``sweep PATTERN``.

Exit codes: 0 done; 1 refused, with one line ``error: …`` on stderr, or a sweep with rows that are not ok; 2 wrong
usage; 130 interrupted.
With ``--json`` stdout holds one JSON document and nothing else, for errors too.

This module can be imported without typer and rich, so that :func:`main` can say what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn

import rewriter
from rewriter.cli_options import (
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
    resolved_passes,
    stdout_kept_clean,
)
from rewriter.cli_output import (
    described_inputs,
    show_diff,
    show_model,
    show_pass,
    show_saved,
    show_seconds,
    show_sites,
    show_skipped,
    show_verdict,
)
from rewriter.edit.classes import class_name, original_class
from rewriter.guideline import Pass
from rewriter.manager import installed_passes
from rewriter.planning import Plan, fingerprint
from rewriter.record import Record, records_of
from rewriter.storage import check_target, check_weights, read_checkpoint

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError:  # installed without the extra; main() says so
    if not TYPE_CHECKING:
        typer = None

INSTALL = 'pip install "rewriter[cli]"'
_NEEDED = ("typer", "rich", "timm")


def main() -> None:
    """Entry point of the ``rewriter`` command."""
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        print(f"error: the command line needs {', '.join(missing)}; install it with: {INSTALL}", file=sys.stderr)
        sys.exit(1)
    try:
        application()()
    except KeyboardInterrupt:
        sys.exit(130)


def application() -> typer.Typer:
    """The commands, as a typer application."""
    from rewriter.cli_sweep import sweep_command

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
        print(f"rewriter {rewriter.__version__} ({', '.join(libraries)})")
        raise typer.Exit


_NAME = Annotated[
    str,
    argument(help="A timm name, or torchvision:NAME, smp:NAME, zoo:NAME, hf:CLASS, hf:ORG/NAME, diffusers:CLASS."),
]
_INPUT_SIZE = Annotated[
    str | None, option("--input-size", metavar="SIZE", help="224, 224,320 (height, width) or 3,224,320; no batch.")
]
_ONLY = Annotated[
    list[str] | None,
    option("--only", metavar="WHERE", help="Edit only here: module path, glob or re:PATTERN; repeatable."),
]
_SKIP = Annotated[list[str] | None, option("--skip", metavar="WHERE", help="Leave this alone; repeatable.")]
_PRETRAINED = Annotated[bool, option("--pretrained", help="Download the default weights.")]
_CHECKPOINT = Annotated[
    Path | None, option("--checkpoint", metavar="FILE", help="Weights of the original: safetensors or torch.save.")
]
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
    name: _NAME,
    model_kwargs: MODEL_KWARGS = None,
    input_size: _INPUT_SIZE = None,
    passes: PASS = None,
    only: _ONLY = None,
    skip: _SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: _PRETRAINED = False,
    checkpoint: _CHECKPOINT = None,
    diff: _DIFF = False,
    as_json: JSON = False,
) -> None:
    """Show what a rewrite would do, where and why, without doing it."""
    wanted = _Wanted(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        work = _Work()
        with stdout_kept_clean(as_json):
            entry = wanted.create(work, meta=not pretrained and checkpoint is None)
            with work.step("plan", f"tracing and planning {name}"):
                made = rewriter.plan(entry.model, **wanted.arguments(entry))
            if wanted.measures(made) and any(parameter.is_meta for parameter in entry.model.parameters()):
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
    name: _NAME,
    output: _OUTPUT = None,
    model_kwargs: MODEL_KWARGS = None,
    input_size: _INPUT_SIZE = None,
    passes: PASS = None,
    only: _ONLY = None,
    skip: _SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: _PRETRAINED = False,
    checkpoint: _CHECKPOINT = None,
    no_verify: _NO_VERIFY = False,
    as_json: JSON = False,
) -> None:
    """Rewrite a model, check what it must preserve, and report; with -o, write it to a directory."""
    wanted = _Wanted(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        work = _Work()
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


@dataclass
class _Work:
    """Names the step that runs on stderr (a terminal only), and times the steps."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        started = time.perf_counter()
        with Console(stderr=True).status(Text(f"{text} …")):
            yield
        self.seconds[name] = time.perf_counter() - started


class _Wanted:
    """A model and a rewrite as asked for on the command line; wrong usage is refused here."""

    def __init__(
        self,
        name: str,
        model_kwargs: Sequence[str] | None,
        input_size: str | None,
        passes: Sequence[str] | None,
        only: Sequence[str] | None,
        skip: Sequence[str] | None,
        preserve: Preserve,
        pretrained: bool,
        checkpoint: Path | None,
    ) -> None:
        self.name = name
        self.model_kwargs = assignments(model_kwargs or (), "--model-kwargs")
        self.size = _parsed_size(input_size)
        self.passes = [parsed_pass(text) for text in passes] if passes else None
        self.only, self.skip = only or None, skip or None
        self.preserve = preserve
        self.pretrained = pretrained
        self.checkpoint = checkpoint
        if pretrained and checkpoint is not None:
            raise typer.BadParameter("give --pretrained or --checkpoint, not both")

    def create(self, work: _Work, meta: bool = False) -> Any:
        """The model, with the weights asked for.

        Args:
            work: names and times the steps.
            meta: without memory, where the constructor allows that.
        """
        import model_zoo

        self.resolved = resolved_passes(self.passes)  # a wrong option is told before a model is made
        weights = read_checkpoint(self.checkpoint) if self.checkpoint is not None else None
        quick = model_zoo.quick_options(self.name) if meta else {}  # only a model that is kept must be as usual
        options = quick | self.model_kwargs
        with work.step("create", f"creating {self.name}"):
            try:
                with torch.device("meta") if meta else contextlib.nullcontext():
                    entry = model_zoo.create(self.name, pretrained=self.pretrained, **options)
            except model_zoo.CreationError:
                if not meta:
                    raise
                entry = model_zoo.create(self.name, **options)
        if weights is not None:
            check_weights(entry.model, weights, f"the weights in {self.checkpoint}")
            entry.model.load_state_dict(weights, strict=True)
        return entry

    def arguments(self, entry: Any) -> dict[str, Any]:
        """Arguments of :func:`rewriter.plan` and :func:`rewriter.rewrite`."""
        own_inputs = entry.example_inputs if self.size is None else None
        size = None if own_inputs is not None else self.size or entry.input_size
        if size is not None and len(size) == 2 and entry.input_size is not None:
            size = (entry.input_size[0], *size)
        return {
            "passes": self.resolved,
            "example_inputs": own_inputs,
            "input_size": size,
            "only": self.only,
            "skip": self.skip,
            "preserve": self.preserve.value,
        }

    def measures(self, made: Plan) -> bool:
        """Whether a pass that decides by the values of weights found a place."""
        known = installed_passes()
        return any(known[site.pass_name].needs_values for site in made.sites)

    def show(self, console: Console, entry: Any, made: Plan) -> None:
        """Print the model and what is asked of it."""
        options = "".join(f", {key}={value!r}" for key, value in self.model_kwargs.items())
        weights = "pretrained" if self.pretrained else f"from {self.checkpoint}" if self.checkpoint else "as created"
        inputs = described_inputs(self.arguments(entry))
        show_model(console, self.name, entry.model, options, weights, inputs, made)

    def recipe(self, entry: Any, record: Record) -> dict[str, Any] | None:
        """How :func:`rewriter.load` makes the original; None where weights decide about the structure."""
        import model_zoo

        if self.pretrained:
            with torch.device("meta"):
                again = model_zoo.create(self.name, **entry.options)
            if fingerprint(again.model) != record.plan.structure:
                return None
        return {"model": self.name, "kwargs": dict(entry.options)}


def _parsed_size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input-size: expected 224, 224,320 or 3,224,320, found {text!r}")
    numbers = tuple(int(part) for part in parts)
    return numbers * 2 if len(numbers) == 1 else numbers


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
    wanted: _Wanted, model: nn.Module, output: Path | None, seconds: dict[str, float]
) -> dict[str, Any]:
    report = rewriter.report(model)
    return {
        "model": wanted.name,
        "kwargs": {key: value if _is_json(value) else repr(value) for key, value in wanted.model_kwargs.items()},
        "class": class_name(original_class(type(model))),
        "applied": len(report.applied),
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
