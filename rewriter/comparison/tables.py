"""Sections of paragraphs, lists and tables, as plain text and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100
"""Columns of the plain text."""

_INDENT = "  "
_GAP = "  "
_NARROWEST = 8


@dataclass(frozen=True)
class Table:
    """A table; the first column is aligned to the left, the others to the right.

    Attributes:
        headings: one a column.
        rows: as many cells each.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self, width: int = WIDTH) -> list[str]:
        """Lines of at most ``width`` characters: where they would be longer, cells of the widest columns are cut."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        while sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths) > _NARROWEST:
            widths[widths.index(max(widths))] -= 1
        return [
            _GAP.join(
                _cut(cell, size).ljust(size) if column == 0 else _cut(cell, size).rjust(size)
                for column, (cell, size) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]

    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        rule = ("---", *("--:" for _ in self.headings[1:]))
        cells = [tuple(map(_cell, line)) for line in (self.headings, *self.rows)]
        return [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it.

    Attributes:
        title: one line.
        blocks: paragraphs (text), lists (tuples of text) and tables.
    """

    title: str
    blocks: tuple[str | tuple[str, ...] | Table, ...]


def plain_text(sections: Sequence[Section]) -> str:
    """Text of at most 100 columns."""
    parts = []
    for section in sections:
        lines = _wrapped(section.title, "", _INDENT)
        for number, block in enumerate(section.blocks):
            if isinstance(block, Table):
                if number and isinstance(section.blocks[number - 1], Table):
                    lines.append("")
                lines += [f"{_INDENT}{line}" for line in block.text(WIDTH - len(_INDENT))]
            elif isinstance(block, str):
                lines += _wrapped(block, _INDENT, _INDENT)
            else:
                lines += [line for item in block for line in _wrapped(item, f"{_INDENT}* ", f"{_INDENT}  ")]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(sections: Sequence[Section]) -> str:
    """The same as Markdown; the first title is that of the document."""
    parts = []
    for number, section in enumerate(sections):
        parts.append(f"{'#' if number == 0 else '##'} {_escaped(section.title)}")
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append("\n".join(block.markdown()))
            elif isinstance(block, str):
                parts.append(_escaped(block))
            else:
                parts.append("\n".join(f"* {_escaped(item)}" for item in block))
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, first: str, following: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False)


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}…"


def _escaped(text: str) -> str:
    for character in "\\*<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")
