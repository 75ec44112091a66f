"""Learning curves and paired differences as figures; the user's matplotlib settings and backend stay as they are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.comparison.files import make_directory, write_whole
from rewriter.comparison.libraries import library
from rewriter.comparison.run import AFTER, ARMS, BEFORE, Run
from rewriter.comparison.units import Unit
from rewriter.comparison.verdict import difference_of, final_value, pairs, unit_of, value

if TYPE_CHECKING:
    from rewriter.comparison.result import Comparison, Training

# of the palette of Okabe and Ito, which people with any colour vision tell apart; the lines differ too
_COLOURS = {BEFORE: "#0072B2", AFTER: "#D55E00"}
_STYLES = {BEFORE: (0, (5, 2)), AFTER: "-"}
_GREY = "#5A5A5A"
_DOTS_PER_INCH = 150
_EPOCHS_FOR_DETAIL = 4
_MOST_MARKERS = 30
_SETTINGS = {
    "svg.hashsalt": "rewriter",  # the same figure gives the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "legend.frameon": False,
}


def save_plots(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write ``learning_curves`` and ``differences``, each as PNG and SVG.

    Args:
        comparison: what to draw; without training there is nothing.
        directory: made if it does not exist.

    Returns:
        The files written; no ``differences`` if no seed was finished by both arms.

    Raises:
        ComparisonError: matplotlib or scipy is not installed, or a file cannot be written.
    """
    training = comparison.training
    if training is None or not training.runs:
        return []
    folder = make_directory(directory)
    written = []
    with _settings():
        figures = {"learning_curves": _learning_curves(comparison.model, training)}
        if difference_of(training, training.metric) is not None:
            figures["differences"] = _differences(comparison.model, training)
        for name, figure in figures.items():
            for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi=_DOTS_PER_INCH, metadata=metadata)
                written.append(write_whole(folder / f"{name}.{suffix}", content.getvalue()))
    return written


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's own defaults with ours, whatever the user has set; theirs are back afterwards."""
    matplotlib = library("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # leaves the backend alone
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure that no window and no global state knows, and its axes from left to right. Sizes are in inches."""
    figure = library("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    library("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, number) for number in range(1, panels + 1)]


def _learning_curves(model: str, training: Training) -> Any:
    """All epochs, and beside them the later half on a scale of its own: where arms differ, and little."""
    last = max((epoch.number for run in training.runs for epoch in run.epochs), default=0)
    starts = (0, (last + 1) // 2) if last >= _EPOCHS_FOR_DETAIL else (0,)
    figure, panels = _figure(5.2 * len(starts) + 1, 4, len(starts))
    unit = unit_of(training, training.metric)
    for axes, start in zip(panels, starts, strict=True):
        for arm in ARMS:
            _draw_arm(axes, [run for run in training.runs if run.arm == arm], training.metric, unit, start)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit.label)
        axes.xaxis.set_major_locator(library("matplotlib.ticker").MaxNLocator(integer=True))
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(f"from epoch {start} on" if start else f"{model}: {training.metric} on the test images")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend()
    return figure


def _draw_arm(axes: Any, runs: list[Run], metric: str, unit: Unit, start: int) -> None:
    """The mean of finished runs, thick; single runs, thin, and the range that they fill; a cross where one stopped."""
    if not runs:
        return
    arm = runs[0].arm
    colour = _COLOURS[arm]
    curves = [(run, {epoch: y for epoch, y in _curve(run, metric, unit) if epoch >= start}) for run in runs]
    finished = [curve for run, curve in curves if final_value(run, metric) is not None]
    stopped = [(run, curve) for run, curve in curves if run.stopped and curve]
    for _, curve in curves if len(finished) > 1 else stopped:
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.4)
    for number, (_, curve) in enumerate(stopped):
        label = None if number else f"{arm}, stopped ({len(stopped)})"
        axes.plot(
            [max(curve)], [curve[max(curve)]], color=colour, marker="x", markersize=8, linestyle="none", label=label
        )
    epochs = sorted(set.intersection(*map(set, finished))) if finished else []
    if not epochs:
        return
    of_epochs = [[curve[epoch] for curve in finished] for epoch in epochs]
    if len(finished) > 1:
        low, high = [min(values) for values in of_epochs], [max(values) for values in of_epochs]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        epochs,
        [sum(values) / len(values) for values in of_epochs],
        color=colour,
        linestyle=_STYLES[arm],
        linewidth=2,
        marker="o" if len(epochs) <= _MOST_MARKERS else None,
        markersize=4,
        label=f"{arm}, mean and range of {len(finished)} seeds" if len(finished) > 1 else f"{arm}, one seed",
    )


def _curve(run: Run, metric: str, unit: Unit) -> list[tuple[int, float]]:
    found = ((epoch.number, value(epoch, metric)) for epoch in run.epochs)
    return [(number, unit.scaled(measured)) for number, measured in found if measured is not None]


def _differences(model: str, training: Training) -> Any:
    difference = difference_of(training, training.metric)
    assert difference is not None
    unit = unit_of(training, training.metric)
    seeds = [pair.before.seed for pair in pairs(training) if pair.values(training.metric) is not None]
    shown = [unit.scaled(found) for found in difference.differences]
    figure, (axes,) = _figure(6.4, 1.9 + 0.24 * len(seeds))
    rows = range(len(seeds), 0, -1)
    axes.axvline(0, color=_GREY, linewidth=1)
    axes.plot(shown, rows, "o", color=_GREY, markersize=5)
    labels = [f"seed {seed}" for seed in seeds]
    ticks = list(rows)
    if difference.interval is not None:
        low, high = unit.scaled(difference.interval.low), unit.scaled(difference.interval.high)
        axes.axvspan(low, high, color=_COLOURS[AFTER], alpha=0.12, linewidth=0)
        axes.plot([low, high], [0, 0], color=_COLOURS[AFTER], linewidth=2, marker="|", markersize=10)
        axes.plot([unit.scaled(difference.mean)], [0], "D", color=_COLOURS[AFTER], markersize=7)
        labels.append("mean, 95 % interval")
        ticks.append(0)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(-0.7, len(seeds) + 0.7)
    left, right = axes.get_xlim()
    reach = max(abs(left), abs(right))
    axes.set_xlim(-reach, reach)
    better = "right" if training.higher_is_better else "left"
    axes.set_title(f"{model}: after − before")
    axes.set_xlabel(f"after − before, {unit.difference_label} (to the {better} of 0: after is better)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
