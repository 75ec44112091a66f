"""The directory of a comparison: a line for each finished run during training, and reports at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.comparison.figures import files
from rewriter.comparison.findings import Run, from_plain, to_plain
from rewriter.comparison.result import Comparison
from rewriter.errors import ComparisonError, ReportError
from rewriter.reporting.result_file import ResultFile

_RUNS = "runs.jsonl"


class RunFile(ResultFile[Run]):
    """Runs of one comparison, by arm and seed."""

    KIND, WORK, FORMAT, ERROR = "rewriter comparison", "a comparison", 1, ComparisonError
    ELSEWHERE = "Give another directory"

    def __init__(
        self, directory: Path, question: Mapping[str, Mapping[str, str]], *, restart: bool, owner: bool
    ) -> None:
        super().__init__(_made(directory) / _RUNS, question, restart=restart, owner=owner)

    def key(self, result: Run) -> tuple[str, int]:
        return result.arm, result.seed

    def to_data(self, result: Run) -> Any:
        return to_plain(result)

    def from_data(self, data: Any) -> Run:
        return from_plain(Run, data)


def number_of_runs(directory: Path) -> int:
    """Return the number of finished runs in a directory, from any comparison; 0 if it is not a run directory."""
    try:
        lines = (directory / _RUNS).read_bytes().count(b"\n")
    except OSError:
        return 0
    return max(lines - 1, 0)  # the first is the header


def write_reports(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write ``summary.md``, ``result.json``, ``images.csv`` (of trained weights), ``runs.csv`` and plots (of training).

    Each file is written atomically; other files are left alone. Returns the files written.

    Raises:
        ReportError: a file cannot be written; names it.
    """
    contents = {"summary.md": comparison.to_markdown().encode(), "result.json": comparison.to_json().encode()}
    if comparison.training is not None:
        contents["runs.csv"] = comparison.to_csv().encode()
    if comparison.trained is not None:
        contents["images.csv"] = comparison.images_to_csv().encode()
    try:
        folder = _made(directory)
        written = [_write_whole(folder / name, content) for name, content in contents.items()]
        return written + save_plots(comparison, folder)
    except ComparisonError as error:
        raise ReportError(str(error), comparison) from error


def save_plots(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write ``learning_curves`` and ``differences`` as PNG and SVG, if there is anything to draw.

    Raises:
        ComparisonError: a file cannot be written.
    """
    drawn = files(comparison)
    folder = _made(directory) if drawn else Path(directory)
    return [_write_whole(folder / name, content) for name, content in drawn.items()]


def _made(directory: str | Path) -> Path:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"the directory {directory} cannot be made: {error.strerror}") from error
    return Path(directory)


def _write_whole(path: Path, content: bytes) -> Path:
    """Write to a temporary file, then replace ``path`` atomically."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise ComparisonError(
            f"{path} cannot be written: {error.strerror}. Make room or give another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path
