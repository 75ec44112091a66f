"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rewriter import libraries
from rewriter.errors import InstallationError

_SIDES = {"l": "left", "r": "right"}


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]], align: str = "") -> str:
    """Return a table in Markdown.

    Args:
        header: the headings.
        rows: cells, which may hold any text.
        align: ``l`` or ``r`` for each column, the last letter also for the following ones: ``"lr"`` for names followed
            by numbers. Cells are then padded to the width of their columns; without ``align`` they are not.

    Raises:
        InstallationError: tabulate is not installed.
    """
    tabulate = libraries.load("tabulate", 'pip install "rewriter[cli]"', InstallationError, "tables in Markdown")
    head, *cells = ([" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in (header, *rows))
    sides = [_SIDES[letter] for letter in align.ljust(len(head), align[-1])] if align else None
    form = "pipe" if align else "github"
    text: str = tabulate.tabulate(cells, head, tablefmt=form, disable_numparse=True, stralign=None, colalign=sides)
    return text
