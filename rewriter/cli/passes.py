"""``rewriter passes``: the guidelines that are installed."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rewriter.cli.options import JSON, errors_reported, output_console, print_json, two_columns
from rewriter.guideline.base import Pass


def passes_command(as_json: JSON = False) -> None:
    """List the passes: what each does, its options, what it preserves, and where the rule comes from."""
    from rewriter.guideline.registry import installed_passes

    with errors_reported(as_json):
        found = [_described(cls) for cls in installed_passes().values()]
        if as_json:
            print_json(found)
            return
        with output_console() as console:
            for number, item in enumerate(found):
                if number:
                    console.print()
                _show(console, item)


def _described(cls: type[Pass]) -> dict[str, Any]:
    options = [
        {
            "name": f.name,
            "type": f.type.__name__ if isinstance(f.type, type) else str(f.type),
            "default": None if f.default is dataclasses.MISSING else f.default,
        }
        for f in dataclasses.fields(cls)
    ]
    contract = dataclasses.asdict(cls.contract)
    return {
        "name": cls.name, "summary": cls.summary, "options": options, "contract": contract,
        "preserves": str(cls.contract), "paper": cls.paper, "after": list(cls.after),
    }  # fmt: skip


def _show(console: Console, item: dict[str, Any]) -> None:
    """Print one pass: what it does, its options, and where the rule comes from."""
    console.print(Text(item["name"], "bold"))
    table = two_columns()
    table.add_row("what", item["summary"])
    for number, taken in enumerate(item["options"]):
        table.add_row("" if number else "options", f"{taken['name']}: {taken['type']} = {taken['default']!r}")
    table.add_row("preserves", item["preserves"] or "nothing")
    if item["after"]:
        table.add_row("after", ", ".join(item["after"]))
    table.add_row("paper", item["paper"])
    console.print(Padding(table, (0, 0, 0, 2)))
