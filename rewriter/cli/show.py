"""``rewriter show DIRECTORY``: what was done to a model that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rewriter.cli.options import (
    JSON,
    argument,
    errors_reported,
    output_console,
    print_json,
    two_columns,
)

_DIRECTORY = Annotated[Path, argument(metavar="DIRECTORY", help="What rewriter.save or rewriter rewrite -o wrote.")]


def show_command(directory: _DIRECTORY, as_json: JSON = False) -> None:
    """Show the plans of a saved model, and what was verified; no model is made and no code is run."""
    with errors_reported(as_json):
        from rewriter.storage.damage import read_json
        from rewriter.storage.directory import PLAN, REPORT, read_plans, read_recipe

        recipe, plans = read_recipe(directory), read_plans(directory)
        report = read_json(directory / REPORT)
        if as_json:
            made = {key: recipe.get(key) for key in ("model", "kwargs", "class", "versions")}
            print_json({**made, "plans": read_json(directory / PLAN), "report": report})
            return
        _show(directory, recipe, plans, report)


def _show(directory: Path, recipe: dict[str, Any], plans: list[Any], report: list[dict[str, Any]]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from rewriter.cli.output import show_sites, show_skipped
    from rewriter.planning.checks import Check, Verification
    from rewriter.planning.render import order_of

    with output_console() as console:
        console.print(Text(str(directory), "bold"))
        table = two_columns()
        options = ", ".join(f"{key}={value!r}" for key, value in recipe["kwargs"].items())
        table.add_row("class", recipe["class"])
        table.add_row("made by", f"{recipe['model']} ({options})" if recipe["model"] else "an original that is given")
        table.add_row("versions", ", ".join(f"{name} {version}" for name, version in recipe["versions"].items()))
        console.print(Padding(table, (0, 0, 0, 2)))
        for plan, done in zip(plans, report, strict=False):
            console.print(Text(f"\npasses: {order_of(plan)}", "bold"))
            show_sites(console, plan, done=True)
            show_skipped(console, plan)
            checks = done["verified"]
            verdict = None if checks is None else Verification(tuple(map(Check.from_data, checks)))
            console.print(Text(f"\nverified: {verdict or 'no'}", "bold"))
