"""The figures of a comparison: learning curves, and the difference for each seed with the interval of their mean.

The user's matplotlib settings and backend are left unchanged.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import pandas
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rewriter.comparison.findings import AFTER, ARMS, BEFORE, Findings, Training
from rewriter.comparison.number_format import small
from rewriter.comparison.statistics import Difference
from rewriter.comparison.verdict import difference_of, judge, unit_of, worth_of_image
from rewriter.text import counted

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "rewriter",  # makes the same figure give the same file
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "legend.frameon": False,
}  # fmt: skip

# from the palette of Okabe and Ito, distinguishable with any colour vision
_COLOURS = {BEFORE: "#0072B2", AFTER: "#D55E00"}
_GREEN, _GREY, _LIGHT_GREY = "#009E73", "#5A5A5A", "#DDDDDD"
# "after" is drawn on "before", which stays visible around it
_LINES: dict[str, dict[str, Any]] = {
    BEFORE: {"linewidth": 5, "alpha": 0.45, "markersize": 9, "markeredgewidth": 0, "solid_capstyle": "round"},
    AFTER: {"linewidth": 1.5, "markersize": 3.5},
}
_SMALL, _TITLE = 9, 11
"""Text sizes in points; lengths are in inches."""

_PANEL, _TWO_PANELS, _HEIGHT, _MARGIN = 6.4, 9.8, 3.9, 0.12
_EPOCHS_FOR_DETAIL, _MOST_MARKERS = 4, 30
_LEAST_IMAGES = {"learning_curves": 10, "differences": 5}
"""The minimum extent of an axis in test images, in height or to either side: less makes noise look like a result."""

_FARTHEST, _CUT = 5.0, 2.0
"""An interval reaching this many times as far as the points is cut off, at this many times."""

_ROW, _TALLEST, _MEAN, _LEAST_FOR_LABEL = 0.24, 5.0, -0.16, 0.16


def files(found: Findings) -> dict[str, bytes]:
    """Return the content of each figure as PNG and SVG, by file name."""
    written = {}
    with _settings():
        for name, figure in figures(found).items():
            for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi="figure", metadata=metadata)
                written[f"{name}.{suffix}"] = content.getvalue()
    return written


def figures(found: Findings) -> dict[str, Figure]:
    """Return ``learning_curves`` if some run finished an epoch, ``differences`` if both arms finished a seed."""
    training = found.training
    drawn = {}
    with _settings():
        if training is not None and any(len(run.epochs) > 1 for run in training.runs):
            drawn["learning_curves"] = _learning_curves(found, training)
        if training is not None and (difference := difference_of(training, training.metric)) is not None:
            drawn["differences"] = _differences(found, training, difference)
    return drawn


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Apply Matplotlib's defaults with our changes; the user's settings are restored afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # leaves the backend unchanged
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _new_figure(
    found: Findings, training: Training, subject: str, notes: Sequence[str], width: float, height: float, panels: int
) -> tuple[Figure, Any]:
    """Return a figure without window or global state, and axes side by side under its heading."""
    asked, finished = len(set(training.seeds)), len(training.final_values(training.metric))
    seeds = counted(asked, "seed") if finished == asked else f"{finished} of {counted(asked, 'seed')} finished by both"
    heading = [f"{found.model}: {subject}", f"verdict on {training.metric}: {judge(training).outcome} ({seeds})"]
    room = width - 2 * _MARGIN
    passes = f"passes: {'; '.join(found.change)}"
    if len(_wrapped(passes, room, _SMALL)) > 2:  # only their names
        passes = f"passes: {', '.join(line.partition(':')[0] for line in found.change)}"
    below = [f"data: {found.data}", *notes, *([passes] if found.change else [])]
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    inner: Any = figure
    styles: list[dict[str, Any]] = [{"size": _TITLE, "weight": "bold"}, {"size": _SMALL, "color": _GREY}]
    for paragraphs, style in zip((heading, below), styles, strict=True):
        lines = [line for text in paragraphs for line in _wrapped(text, room, style["size"])]
        height += len(lines) * style["size"] * 1.35 / 72
        inner.suptitle("\n".join(lines), x=_MARGIN / width, ha="left", parse_math=False, **style)
        inner = inner.subfigures()
    figure.set_figheight(height + _MARGIN)
    return figure, inner.subplots(1, panels, squeeze=False)[0]


def _wrapped(text: str, width: float, size: float = 10) -> list[str]:
    """Wrap the text into at most three lines of ``width`` inches, by the mean width of bold letters."""
    return textwrap.wrap(text, int(width * 72 / (0.7 * size)), max_lines=3, placeholder="…")


def _worth(training: Training) -> tuple[float, list[str]]:
    """Return the value of one test image in the displayed unit, 0 if the metric does not count images; and in words."""
    worth = unit_of(training).scaled(worth_of_image(training) or 0.0)
    points = f"{small(worth)} point{'' if small(worth) == '1' else 's'} of {training.metric}"
    return worth, [f"one test image of {training.test_images} = {points}"] if worth else []


def _learning_curves(found: Findings, training: Training) -> Figure:
    """Draw all epochs, and beside them the second half on its own scale, where small differences show."""
    unit, (worth, notes) = unit_of(training), _worth(training)
    curves = [
        [[epoch.value(training.metric) for epoch in run.epochs] for run in (p.before, p.after)] for p in training.pairs
    ]
    if any(curve[0] != [None] * len(curve[0]) for curve in curves) and all(before == after for before, after in curves):
        notes.insert(0, f"both arms have the same {training.metric} in every epoch, to the last digit")
    last = max(epoch.number for run in training.runs for epoch in run.epochs)
    starts = (0, (last + 1) // 2) if last >= _EPOCHS_FOR_DETAIL else (0,)
    width = _PANEL if len(starts) == 1 else _TWO_PANELS
    subject = f"{training.metric} on the test images"
    figure, panels = _new_figure(found, training, subject, notes, width, _HEIGHT, len(starts))
    for axes, start in zip(panels, starts, strict=True):
        for arm in ARMS:
            _draw_arm(axes, arm, training, start)
        low, high = axes.get_ylim()
        missing = max(_LEAST_IMAGES["learning_curves"] * worth - (high - low), 0)
        axes.set_ylim(low - missing / 2, high + missing / 2)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.get_major_formatter().set_useOffset(False)
        axes.grid(axis="y", color=_LIGHT_GREY, linewidth=0.6)
        axes.set_axisbelow(True)
        if start:
            axes.set_title(f"the later half, from epoch {start} on", size=_SMALL)
    label = f"{unit.label} ({'higher' if training.higher_is_better else 'lower'} is better)"
    panels[0].set_ylabel("\n".join(_wrapped(label, 0.7 * _HEIGHT)), parse_math=False)
    if (handles := panels[0].get_legend_handles_labels())[0]:
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=_SMALL, handlelength=3)
    return figure


def _draw_arm(axes: Any, arm: str, training: Training, start: int) -> None:
    """Draw mean and range over the seeds that both arms finished, or else all of this arm; other runs as thin lines."""
    metric, unit, runs = training.metric, unit_of(training), training.runs_of(arm)
    finished = {run.seed for run in runs if run.value(metric) is not None}
    seeds = {pair.before.seed for pair in training.pairs if pair.values(metric)} or finished
    curves = pandas.DataFrame(
        {r.seed: {e.number: unit.scaled(y) for e in r.epochs if (y := e.value(metric)) is not None} for r in runs},
        dtype=float,
    ).sort_index()
    curves = curves[curves.index >= start] if start else curves
    shared = curves[[seed for seed in curves if seed in seeds]].dropna()
    style: dict[str, Any] = {"color": _COLOURS[arm]}
    if not shared.empty:
        several = len(shared.columns) > 1
        if several:
            axes.fill_between(shared.index, shared.min(axis=1), shared.max(axis=1), alpha=0.15, linewidth=0, **style)
        label = f"{arm}, mean and range of {len(shared.columns)} seeds" if several else f"{arm}, one seed"
        marker = "o" if len(shared) <= _MOST_MARKERS else None
        axes.plot(shared.mean(axis=1), marker=marker, label=label, **style, **_LINES[arm])
    stopped = [run.seed for run in runs if run.stopped and curves[run.seed].notna().any()]
    cross = {"marker": "x", "markevery": [-1], "markersize": 9, "markeredgewidth": 2}
    for why, drawn, end in (("finished by this arm alone", finished - seeds, {}), ("stopped", stopped, cross)):
        for number, seed in enumerate(drawn):
            name = None if number else f"{arm}, {why} ({len(drawn)})"
            axes.plot(curves[seed].dropna(), linewidth=0.8, label=name, **style, **end)


def _differences(found: Findings, training: Training, difference: Difference) -> Figure:
    """Draw one point per seed, and below them the mean and its 95 % interval."""
    unit, (worth, note), interval = unit_of(training), _worth(training), difference.interval
    ended = training.pairs
    row = min(_ROW, _TALLEST / len(ended))
    rows = [row * (len(ended) - number) for number in range(len(ended))]  # in inches, like the whole vertical axis
    bottom, top = 0.0 if interval is None else _MEAN - 0.3, rows[0] + 0.6 * _ROW
    subject = f"{training.metric}, after − before"
    figure, (axes,) = _new_figure(found, training, subject, [], _PANEL, 1.1 + top - bottom, 1)
    points = max(_LEAST_IMAGES["differences"] * worth, *(abs(unit.scaled(found)) for found in difference.differences))
    farthest = 0.0 if interval is None else unit.scaled(max(abs(interval.low), abs(interval.high)))
    reach = max(points, _CUT * points if points and farthest > _FARTHEST * points else farthest) or 1.0
    axes.set(xlim=(-1.05 * reach, 1.05 * reach), ylim=(bottom, top))
    if worth:
        axes.axvspan(-worth, worth, color=_LIGHT_GREY, linewidth=0)
    axes.axvline(0, color=_GREY, linewidth=1)
    for place, pair in zip(rows, ended, strict=True):
        values = pair.values(training.metric)
        if values is not None:
            axes.plot([unit.scaled(values[1] - values[0])], [place], "o", color=_GREY, markersize=5)
            continue
        failed = [run.arm for run in (pair.before, pair.after) if run.failure(training.metric)]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        style = {"size": _SMALL, "color": _GREY, "style": "italic", "ha": "center", "va": "center", "bbox": box}
        axes.text(0, place, f"{' and '.join(failed)} stopped", **style)
    labelled = range(0, len(ended), math.ceil(_LEAST_FOR_LABEL / row))
    ticks = {rows[number]: f"seed {ended[number].before.seed}" for number in labelled}
    if interval is not None:
        low, high = unit.scaled(interval.low), unit.scaled(interval.high)
        left, right = max(low, -reach), min(high, reach)
        axes.axvspan(low, high, color=_GREEN, alpha=0.12, linewidth=0)
        axes.plot([left, right], [_MEAN, _MEAN], color=_GREEN, linewidth=2)
        for drawn, end, arrow in ((left, low, "<"), (right, high, ">")):  # where the interval leaves the axis
            marker = "|" if drawn == end else arrow
            axes.plot([drawn], [_MEAN], marker=marker, color=_GREEN, markersize=9, markeredgewidth=2)
        axes.plot([unit.scaled(difference.mean)], [_MEAN], "D", color=_GREEN, markersize=6)
        ticks[_MEAN] = "mean {}\n95 % interval\n{}".format(*unit.difference(difference.mean, interval))
    axes.set_yticks(list(ticks), list(ticks.values()))
    sides = (BEFORE, AFTER) if training.higher_is_better else (AFTER, BEFORE)
    for arm, side, text in zip(sides, ("left", "right"), ("← {} is better", "{} is better →"), strict=True):
        axes.set_title(text.format(arm), loc=side, size=_SMALL, color=_COLOURS[arm])
    labels = [f"after − before, {unit.difference_label}", *(f"grey: {text}" for text in note)]
    axes.set_xlabel("\n".join(line for text in labels for line in _wrapped(text, 0.7 * _PANEL)), parse_math=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
