"""``rewriter passes``: the guidelines that are installed, passes and measurements."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rewriter.cli.options import JSON, errors_reported, output_console, print_json, two_columns
from rewriter.guideline.base import Pass
from rewriter.measurement.catalogue import CATALOGUE, Entry


def passes_command(as_json: JSON = False) -> None:
    """List passes and measurements: what each does, whether it runs by default, and where the rule comes from."""
    from rewriter.guideline.registry import installed_passes

    with errors_reported(as_json):
        passes = sorted(installed_passes().values(), key=lambda cls: not cls.default)
        found = [*map(_described, passes), *(_measurement(name, entry) for name, entry in CATALOGUE.items())]
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
        "name": cls.name, "kind": "pass", "default": cls.default, "summary": cls.summary, "options": options,
        "contract": contract, "preserves": str(cls.contract), "paper": cls.paper, "after": list(cls.after),
        "codes": [lint.code for lint in cls.codes],
    }  # fmt: skip


def _measurement(name: str, entry: Entry) -> dict[str, Any]:
    options = [{"name": option, "type": "", "default": None} for option in entry.options]
    return {"name": name, "kind": "measurement", "summary": entry.summary, "options": options, "paper": entry.paper}


def _show(console: Console, item: dict[str, Any]) -> None:
    """Print one guideline: what it does, how it is run, its options, and where the rule comes from."""
    console.print(Text(item["name"], "bold"))
    table = two_columns()
    table.add_row("what", item["summary"])
    if item["kind"] == "measurement":
        table.add_row("runs", f"rewriter measure NAME {item['name']}")
        table.add_row("options", ", ".join(taken["name"] for taken in item["options"]))
    else:
        table.add_row("runs", "by default" if item["default"] else f"when named: --pass {item['name']}")
        for number, taken in enumerate(item["options"]):
            table.add_row("" if number else "options", f"{taken['name']}: {taken['type']} = {taken['default']!r}")
        table.add_row("preserves", item["preserves"] or "nothing")
        table.add_row("finds", ", ".join(item["codes"]) or "nothing to check for")
        if item["after"]:
            table.add_row("after", ", ".join(item["after"]))
    table.add_row("paper", item["paper"])
    console.print(Padding(table, (0, 0, 0, 2)))
