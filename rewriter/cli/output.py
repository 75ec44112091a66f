"""Terminal output of the commands for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text
from torch import nn

from rewriter.cli.options import two_columns
from rewriter.edit.classes import class_name, original_class
from rewriter.planning.data import PlanData
from rewriter.planning.diff import diff_of
from rewriter.planning.record import Record
from rewriter.planning.render import order_of, texts_of_advice, texts_of_site
from rewriter.text import counted, group, in_milliseconds
from rewriter.tracing.inputs import BATCH


def show_model(
    console: Console, name: str, model: nn.Module, options: str, weights: str, inputs: str, made: PlanData
) -> None:
    """Print the model, how it was made and traced, and the request."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    console.print(Text(name, "bold"))
    table = two_columns()
    table.add_row("class", f"{class_name(original_class(type(model)))}{options}")
    table.add_row("weights", f"{_millions(numbers)} parameters, {weights}")
    table.add_row("traced", f"in training and in evaluation mode, on {inputs}")
    table.add_row("passes", order_of(made))
    for selector in ("only", "skip"):
        if made.request.get(selector):
            table.add_row(selector, ", ".join(made.request[selector]))
    for note in made.notes:
        table.add_row("note", Text(note, "yellow"))
    console.print(Padding(table, (0, 0, 0, 2)))


def described_inputs(arguments: dict[str, Any]) -> str:
    """Describe the inputs of a model in words."""
    examples = arguments["example_inputs"]
    if examples is not None:
        if isinstance(examples, dict):
            return ", ".join(f"{name} {_shape(value)}" for name, value in examples.items())
        return ", ".join(_shape(value) for value in examples)
    size = arguments["input_size"]
    return " x ".join(map(str, (BATCH, *size))) if size else "an input of the model's own size"


def _shape(value: Any) -> str:
    """Format as ``2 x 3 x 8 x 64 x 64``, ``2 of (3 x 64 x 64)`` for a list, or the names of a target's parts."""
    if isinstance(value, torch.Tensor):
        return " x ".join(map(str, value.shape))
    if isinstance(value, dict):
        return ", ".join(value)
    return f"{len(value)} of ({_shape(value[0])})"


def show_sites(console: Console, made: PlanData, *, done: bool) -> None:
    """Print what each pass edits, or recommends without editing."""
    waiting = f", {len(made.inactive)} of them without effect at their rate" if made.inactive else ""
    _heading(console, f"{'edited' if done else 'to edit'}: {counted(len(made.sites), 'place')}{waiting}")
    for name, _ in made.passes:
        sites, _, advice = made.findings(name)
        if sites or advice:
            _indented(console, Text(name, "cyan"), 2)
        for paths, (mark, pattern, *details) in group(sites, texts_of_site):
            shown = (f"{mark} ", "yellow" if mark == "~" else "green")
            _indented(console, Text.assemble(shown, (paths, "bold"), f"  {pattern}"), 4)
            for line in details:
                _indented(console, Text(line), 8)
        if advice:
            _indented(console, Text("nothing is edited; it says:"), 4)
        for paths, (what, reason) in group(advice, texts_of_advice):
            _indented(console, Text.assemble(("* ", "cyan"), (paths, "bold"), f"  {what}"), 4)
            _indented(console, Text(f"because {reason}"), 8)
    if made.idle:
        _indented(console, Text(f"nothing found by {', '.join(made.idle)}", "dim"), 2)


def show_skipped(console: Console, made: PlanData) -> None:
    """Print what was left alone, by reason."""
    if not made.skipped:
        return
    _heading(console, f"left alone: {counted(len(made.skipped), 'place')}")
    for reason in dict.fromkeys(skip.reason for skip in made.skipped):
        alike = [skip for skip in made.skipped if skip.reason == reason]
        _indented(console, Text.assemble(("- ", "yellow"), f"{reason}: {len(alike)}"), 2)
        for paths, (what, detail) in group(alike, lambda skip: (f"{skip.pattern} ({skip.pass_name})", skip.detail)):
            _indented(console, Text.assemble((paths, "bold"), f"  {what}"), 6)
            if detail:
                _indented(console, Text(detail), 10)


def show_diff(console: Console, made: PlanData, model: nn.Module) -> None:
    """Print the source changes of methods."""
    text = diff_of(made, model).rstrip()
    if text:
        _heading(console, "change of source")
        syntax = Syntax("", "diff", theme="ansi_dark", background_color="default")
        highlighted = syntax.highlight(text)
        highlighted.rstrip()
        console.print(highlighted, soft_wrap=True)


def show_verdict(console: Console, record: Record) -> None:
    """Print what was verified."""
    if record.verdict is None:
        why = "not verified" if record.plan.sites else "nothing to verify: the model is unchanged"
        _heading(console, why)
        return
    _heading(console, "verified on this model")
    styles = {True: "green", False: "bold red", None: "yellow"}
    table = two_columns()
    table.add_column()
    for check in record.verdict.checks:
        table.add_row(check.name, Text(check.verdict, styles[check.held]), check.detail)
    console.print(Padding(table, (0, 0, 0, 2)))


def show_seconds(console: Console, seconds: dict[str, float]) -> None:
    """Print how long each step took."""
    console.print()
    console.print(Text(f"time: {in_milliseconds(seconds)}", "dim"))


def show_saved(console: Console, output: Path, *, rebuilds: bool, original: str) -> None:
    """Print where the model was written, and how to load it; ``original`` says what has to be given for that."""
    console.print()
    console.print(Text(f"written to {output}; to load it:", "bold"))
    if rebuilds:
        call = f'rewriter.load("{output.as_posix()}")'
    else:
        call = f'rewriter.load("{output.as_posix()}", original)  # {original}'
    console.print(Text(f"\n    import rewriter\n    model = {call}"), soft_wrap=True)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold"))


def _indented(console: Console, text: Text, columns: int) -> None:
    text.overflow = "fold"
    console.print(Padding(text, (0, 0, 0, columns)))


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
