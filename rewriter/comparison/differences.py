"""After − before, seed by seed, with its mean and interval, as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rewriter.comparison.figure import (
    COLOURS,
    GREEN,
    GREY,
    LIGHT_GREY,
    PANEL,
    SMALL,
    new_figure,
    worth_in_words,
    worth_of_image_shown,
    wrapped,
)
from rewriter.comparison.run import AFTER, ARMS, BEFORE
from rewriter.comparison.statistics import Difference
from rewriter.comparison.units import Unit
from rewriter.comparison.verdict import Pair, difference_of, failure, pairs, unit_of

if TYPE_CHECKING:
    from rewriter.comparison.data import Training
    from rewriter.comparison.result import Comparison

_LEAST_IMAGES = 5
"""The axis reaches at least so many test images to either side: less would make noise look like a result."""

_FARTHEST = 5.0
"""An interval that reaches so many times as far as the points is cut, or they could not be told apart."""

_CUT = 2.0
"""So many times as far as the points an interval is then drawn."""

# heights are in inches, which are the units of the vertical axis
_ROW, _TALLEST = 0.24, 5.0
_MEAN = -0.16
_BELOW_MEAN = 0.3
_LEAST_FOR_LABEL = 0.16
_AROUND = 1.1
"""Of labels and margins, beside the rows."""


def differences(comparison: Comparison) -> Any:
    """One point a seed, below them the mean and its 95 % interval; None if no seed was finished by both arms."""
    training = comparison.training
    difference = None if training is None else difference_of(training, training.metric)
    if training is None or difference is None:
        return None
    unit, worth = unit_of(training, training.metric), worth_of_image_shown(training)
    ended = pairs(training)
    row = min(_ROW, _TALLEST / len(ended))
    rows = [row * (len(ended) - number) for number in range(len(ended))]
    bottom, top = 0.0 if difference.interval is None else _MEAN - _BELOW_MEAN, rows[0] + 0.6 * _ROW
    figure, (axes,) = new_figure(comparison, f"{training.metric}, after − before", [], PANEL, _AROUND + top - bottom)
    reach = _reach(difference, unit, worth)
    axes.set_xlim(-1.05 * reach, 1.05 * reach)
    axes.set_ylim(bottom, top)
    if worth is not None:
        axes.axvspan(-worth, worth, color=LIGHT_GREY, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=1)
    for place, pair in zip(rows, ended, strict=True):
        _draw_pair(axes, place, pair, training.metric, unit)
    labelled = range(0, len(ended), math.ceil(_LEAST_FOR_LABEL / row))
    ticks = {rows[number]: f"seed {ended[number].before.seed}" for number in labelled}
    if difference.interval is not None:
        ticks[_MEAN] = _draw_mean(axes, difference, unit, reach)
    axes.set_yticks(list(ticks), list(ticks.values()))
    _draw_sides(axes, training)
    labels = wrapped(f"after − before, {unit.difference_label}", 0.7 * PANEL)
    if worth is not None:
        labels += wrapped(f"grey: {worth_in_words(training, worth)}", 0.7 * PANEL)
    axes.set_xlabel("\n".join(labels), parse_math=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _reach(difference: Difference, unit: Unit, worth: float | None) -> float:
    """How far the axis goes to either side of 0."""
    points = max(abs(unit.scaled(found)) for found in difference.differences)
    points = max(points, _LEAST_IMAGES * (worth or 0))
    interval = difference.interval
    farthest = 0.0 if interval is None else unit.scaled(max(abs(interval.low), abs(interval.high)))
    if points and farthest > _FARTHEST * points:
        farthest = _CUT * points
    return max(points, farthest) or 1.0


def _draw_pair(axes: Any, place: float, pair: Pair, metric: str, unit: Unit) -> None:
    """The difference of one seed; in its place, if there is none, why."""
    values = pair.values(metric)
    if values is not None:
        axes.plot([unit.scaled(values[1] - values[0])], [place], "o", color=GREY, markersize=5)
        return
    failed = [arm for arm, run in zip(ARMS, (pair.before, pair.after), strict=True) if failure(run, metric)]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    text = f"{' and '.join(failed)} stopped"
    axes.text(0, place, text, size=SMALL, color=GREY, style="italic", ha="center", va="center", bbox=box)


def _draw_mean(axes: Any, difference: Difference, unit: Unit, reach: float) -> str:
    """The mean and its interval, with an arrow where the interval leaves the axis. Returns the label of the row."""
    interval = difference.interval
    assert interval is not None
    low, high = unit.scaled(interval.low), unit.scaled(interval.high)
    left, right = max(low, -reach), min(high, reach)
    axes.axvspan(low, high, color=GREEN, alpha=0.12, linewidth=0)
    axes.plot([left, right], [_MEAN, _MEAN], color=GREEN, linewidth=2)
    for drawn, end, arrow in ((left, low, "<"), (right, high, ">")):
        axes.plot([drawn], [_MEAN], marker="|" if drawn == end else arrow, color=GREEN, markersize=9, markeredgewidth=2)
    axes.plot([unit.scaled(difference.mean)], [_MEAN], "D", color=GREEN, markersize=6)
    mean, ends = unit.difference(difference.mean, interval)
    return f"mean {mean}\n95 % interval\n{ends}"


def _draw_sides(axes: Any, training: Training) -> None:
    """On which side of 0 which arm is better."""
    left, right = (BEFORE, AFTER) if training.higher_is_better else (AFTER, BEFORE)
    axes.set_title(f"← {left} is better", loc="left", size=SMALL, color=COLOURS[left])
    axes.set_title(f"{right} is better →", loc="right", size=SMALL, color=COLOURS[right])
