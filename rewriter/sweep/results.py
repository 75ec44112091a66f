"""The result file of a sweep: one row per model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewriter.errors import SweepError
from rewriter.reporting.result_file import ResultFile
from rewriter.sweep.request import SweepRequest, versions_of_libraries
from rewriter.sweep.row import Row


class SweepFile(ResultFile[Row]):
    """Rows of one request, by model name."""

    KIND, WORK, FORMAT, ERROR = "rewriter sweep", "a sweep", 2, SweepError
    ELSEWHERE = "Give another file with -o"

    def __init__(self, path: Path, request: SweepRequest, restart: bool = False) -> None:
        super().__init__(path, {"request": request.described(), "versions": versions_of_libraries()}, restart=restart)

    def key(self, result: Row) -> str:
        return result.name

    def to_data(self, result: Row) -> Any:
        return result.to_data()

    def from_data(self, data: Any) -> Row:
        return Row.from_data(data)
