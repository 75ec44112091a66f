"""Tables in Markdown: what cells may hold, and columns of numbers."""

from __future__ import annotations

import sys

import pytest

import rewriter
from rewriter.reporting.tables import markdown_table


def test_cells_are_as_wide_as_their_texts() -> None:
    header, line, *rows = markdown_table(["model", "why"], [["a", "x | y\nz"], ["long name", 3]]).splitlines()
    assert header == "| model | why |" and set(line) == {"|", "-"}
    assert rows == [r"| a | x \| y z |", "| long name | 3 |"]


def test_columns_of_numbers_are_aligned() -> None:
    lines = markdown_table(["step", "ms", "MB"], [["plan", "1.50", "7"], ["apply", "12.5", "70"]], "lr").splitlines()
    assert lines == [
        "| step   |   ms |   MB |",
        "|:-------|-----:|-----:|",
        "| plan   | 1.50 |    7 |",
        "| apply  | 12.5 |   70 |",
    ]


def test_without_tabulate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tabulate", None)
    with pytest.raises(rewriter.InstallationError, match=r'tabulate is not installed.*pip install "rewriter\[cli\]"'):
        markdown_table(["a"], [["b"]])
