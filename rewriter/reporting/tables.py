"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rewriter import libraries
from rewriter.errors import InstallationError

_SIDES = {"l": "left", "r": "right"}


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]], align: str = "") -> str:
    """A table in Markdown.

    Args:
        header: the headings.
        rows: cells, which may hold any text.
        align: ``l`` or ``r`` for each column, the last letter also for those behind it: ``"lr"`` for numbers behind
            names. Then cells are as wide as their columns; without, as wide as their texts.

    Raises:
        InstallationError: tabulate is not installed.
    """
    tabulate = libraries.load("tabulate", 'pip install "rewriter[cli]"', InstallationError, "tables in Markdown")
    head, *cells = ([" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in (header, *rows))
    sides = [_SIDES[letter] for letter in align.ljust(len(head), align[-1])] if align else None
    form = "pipe" if align else "github"
    text: str = tabulate.tabulate(cells, head, tablefmt=form, disable_numparse=True, stralign=None, colalign=sides)
    return text
