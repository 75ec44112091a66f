"""The figures of a comparison as files; the user's matplotlib settings and backend stay as they are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.comparison.differences import differences
from rewriter.comparison.files import make_directory, write_whole
from rewriter.comparison.learning_curves import learning_curves
from rewriter.comparison.libraries import library

if TYPE_CHECKING:
    from rewriter.comparison.result import Comparison

_SETTINGS = {
    "svg.hashsalt": "rewriter",  # the same figure gives the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def save_plots(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write ``learning_curves`` and ``differences``, each as PNG and SVG.

    Args:
        comparison: what to draw; without training there is nothing.
        directory: made if it does not exist.

    Returns:
        The files written; no ``learning_curves`` if no run finished an epoch, no ``differences`` if no seed was
        finished by both arms.

    Raises:
        ComparisonError: matplotlib or scipy is not installed, or a file cannot be written.
    """
    if comparison.training is None or not comparison.training.runs:
        return []
    folder = make_directory(directory)
    written = []
    with _settings():
        for name, figure in figures(comparison).items():
            for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi="figure", metadata=metadata)
                written.append(write_whole(folder / f"{name}.{suffix}", content.getvalue()))
    return written


def figures(comparison: Comparison) -> dict[str, Any]:
    """The figures of :func:`save_plots`, each a ``matplotlib.figure.Figure``, by name.

    Raises:
        ComparisonError: matplotlib or scipy is not installed.
    """
    if comparison.training is None or not comparison.training.runs:
        return {}
    learned = any(len(run.epochs) > 1 for run in comparison.training.runs)
    with _settings():
        drawn = {
            "learning_curves": learning_curves(comparison) if learned else None,
            "differences": differences(comparison),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's own defaults with ours, whatever the user has set; theirs are back afterwards."""
    matplotlib = library("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # leaves the backend alone
        matplotlib.rcParams.update(_SETTINGS)
        yield
