"""The run directory's list of finished runs: one line an arm and seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.comparison.files import make_directory
from rewriter.comparison.plain import decode, encode
from rewriter.comparison.run import Run
from rewriter.errors import ComparisonError
from rewriter.reporting.result_file import ResultFile

NAME = "runs.jsonl"


class RunFile(ResultFile[Run]):
    """Runs of one comparison, by arm and seed."""

    KIND, WORK, FORMAT, ERROR = "rewriter comparison", "a comparison", 1, ComparisonError
    ELSEWHERE = "Give another directory"

    def __init__(
        self, directory: Path, question: Mapping[str, Mapping[str, str]], *, restart: bool, owner: bool
    ) -> None:
        super().__init__(make_directory(directory) / NAME, question, restart=restart, owner=owner)

    def key(self, result: Run) -> tuple[str, int]:
        return result.arm, result.seed

    def to_data(self, result: Run) -> Any:
        return encode(result)

    def from_data(self, data: Any) -> Run:
        return decode(Run, data)


def number_of_runs(directory: Path) -> int:
    """How many finished runs a directory holds, whatever comparison they are of; 0 if it is no run directory."""
    try:
        lines = (directory / NAME).read_bytes().count(b"\n")
    except OSError:
        return 0
    return max(lines - 1, 0)  # the first is the header
