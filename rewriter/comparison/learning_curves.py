"""The judged metric of both arms over the epochs, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewriter.comparison.figure import (
    COLOURS,
    LIGHT_GREY,
    PANEL,
    SMALL,
    new_figure,
    worth_in_words,
    worth_of_image_shown,
    wrapped,
)
from rewriter.comparison.libraries import library
from rewriter.comparison.run import AFTER, ARMS, BEFORE, Run
from rewriter.comparison.units import Unit
from rewriter.comparison.verdict import final_value, pairs, unit_of, value

if TYPE_CHECKING:
    from rewriter.comparison.data import Training
    from rewriter.comparison.result import Comparison

# "after" is drawn on "before", which stays visible around it
_LINES: dict[str, dict[str, Any]] = {
    BEFORE: {"linewidth": 5, "alpha": 0.45, "markersize": 9, "markeredgewidth": 0, "solid_capstyle": "round"},
    AFTER: {"linewidth": 1.5, "markersize": 3.5},
}
_HEIGHT = 3.9
_TWO_PANELS = 9.8
_EPOCHS_FOR_DETAIL = 4
_MOST_MARKERS = 30
_LEAST_IMAGES = 10
"""A panel is at least so many test images high: less would make noise look like a result."""


def learning_curves(comparison: Comparison) -> Any:
    """All epochs, and beside them the later half on a scale of its own: where arms differ, and little."""
    training = comparison.training
    assert training is not None
    unit, worth = unit_of(training, training.metric), worth_of_image_shown(training)
    notes = [] if worth is None else [worth_in_words(training, worth)]
    if _equal_curves(training):
        notes.insert(0, f"both arms have the same {training.metric} in every epoch, to the last digit")
    last = max((epoch.number for run in training.runs for epoch in run.epochs), default=0)
    starts = (0, (last + 1) // 2) if last >= _EPOCHS_FOR_DETAIL else (0,)
    width = PANEL if len(starts) == 1 else _TWO_PANELS
    subject = f"{training.metric} on the test images"
    figure, panels = new_figure(comparison, subject, notes, width, _HEIGHT, len(starts))
    for axes, start in zip(panels, starts, strict=True):
        for arm in ARMS:
            _draw_arm(axes, arm, training, start)
        _widen(axes, _LEAST_IMAGES * (worth or 0))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(library("matplotlib.ticker").MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.get_major_formatter().set_useOffset(False)
        axes.grid(axis="y", color=LIGHT_GREY, linewidth=0.6)
        axes.set_axisbelow(True)
        if start:
            axes.set_title(f"the later half, from epoch {start} on", size=SMALL)
    label = f"{unit.label} ({'higher' if training.higher_is_better else 'lower'} is better)"
    panels[0].set_ylabel("\n".join(wrapped(label, 0.7 * _HEIGHT)), parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL, handlelength=3)
    return figure


def _equal_curves(training: Training) -> bool:
    """Whether the judged metric is the same to the last digit in every epoch of every pair."""
    curves = [
        [[value(epoch, training.metric) for epoch in run.epochs] for run in (pair.before, pair.after)]
        for pair in pairs(training)
    ]
    measured = any(found is not None for before, _ in curves for found in before)
    return measured and all(before == after for before, after in curves)


def _widen(axes: Any, least: float) -> None:
    """Make the vertical range at least so large, about its middle."""
    low, high = axes.get_ylim()
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def _draw_arm(axes: Any, arm: str, training: Training, start: int) -> None:
    """Mean and range over the seeds that both arms finished, or else over all of this arm; other runs as thin lines."""
    metric, unit = training.metric, unit_of(training, training.metric)
    runs = [run for run in training.runs if run.arm == arm]
    own = {run.seed for run in runs if final_value(run, metric) is not None}
    seeds = {pair.before.seed for pair in pairs(training) if pair.values(metric) is not None} or own
    curves = [(run, {epoch: y for epoch, y in _curve(run, metric, unit) if epoch >= start}) for run in runs]
    _draw_mean(axes, arm, [curve for run, curve in curves if run.seed in seeds])
    left_out = [curve for run, curve in curves if run.seed in own - seeds]
    _draw_thin(axes, arm, "finished by this arm alone", left_out)
    stopped = [curve for run, curve in curves if run.stopped and curve]
    _draw_thin(axes, arm, "stopped", stopped, marker="x", markevery=[-1], markersize=9, markeredgewidth=2)


def _draw_mean(axes: Any, arm: str, curves: list[dict[int, float]]) -> None:
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    if not epochs:
        return
    of_epochs = [[curve[epoch] for curve in curves] for epoch in epochs]
    if len(curves) > 1:
        low, high = [min(values) for values in of_epochs], [max(values) for values in of_epochs]
        axes.fill_between(epochs, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
    axes.plot(
        epochs,
        [sum(values) / len(values) for values in of_epochs],
        color=COLOURS[arm],
        marker="o" if len(epochs) <= _MOST_MARKERS else None,
        label=f"{arm}, mean and range of {len(curves)} seeds" if len(curves) > 1 else f"{arm}, one seed",
        **_LINES[arm],
    )


def _draw_thin(axes: Any, arm: str, why: str, curves: list[dict[int, float]], **style: Any) -> None:
    for number, curve in enumerate(curves):
        label = None if number else f"{arm}, {why} ({len(curves)})"
        axes.plot(list(curve), list(curve.values()), color=COLOURS[arm], linewidth=0.8, label=label, **style)


def _curve(run: Run, metric: str, unit: Unit) -> list[tuple[int, float]]:
    found = ((epoch.number, value(epoch, metric)) for epoch in run.epochs)
    return [(number, unit.scaled(measured)) for number, measured in found if measured is not None]
