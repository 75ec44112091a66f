"""A comparison as a directory of files: for reading, for programs, and for a paper."""

from __future__ import annotations

from pathlib import Path

from rewriter.comparison.files import make_directory, write_whole
from rewriter.comparison.plots import save_plots
from rewriter.comparison.result import Comparison
from rewriter.errors import ComparisonError, ReportError


def write_reports(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write ``summary.md``, ``result.json``, ``images.csv`` (of trained weights), ``runs.csv`` and plots (of training).

    Each file is written whole or not at all; files of other names are left alone.

    Args:
        comparison: what to write.
        directory: made if it does not exist.

    Returns:
        The files written.

    Raises:
        ReportError: a file cannot be written, with its name; or a library is not installed.
    """
    try:
        texts = {"summary.md": comparison.to_markdown(), "result.json": comparison.to_json()}
        if comparison.training is not None:
            texts["runs.csv"] = comparison.to_csv()
        if comparison.trained is not None:
            texts["images.csv"] = comparison.images_to_csv()
        folder = make_directory(directory)
        written = [write_whole(folder / name, text.encode()) for name, text in texts.items()]
        return written + save_plots(comparison, folder)
    except ComparisonError as error:
        raise ReportError(str(error), comparison) from error
