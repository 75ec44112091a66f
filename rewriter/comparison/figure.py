"""What all figures of a comparison share: colours, a heading that says what was compared, and the least scale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rewriter.comparison.libraries import library
from rewriter.comparison.run import AFTER, BEFORE
from rewriter.comparison.units import small
from rewriter.comparison.verdict import final_values, unit_of, worth_of_image
from rewriter.text import counted

if TYPE_CHECKING:
    from rewriter.comparison.data import Training
    from rewriter.comparison.result import Comparison

# of the palette of Okabe and Ito, which people with any colour vision tell apart
COLOURS = {BEFORE: "#0072B2", AFTER: "#D55E00"}
GREEN, GREY, LIGHT_GREY = "#009E73", "#5A5A5A", "#DDDDDD"
SMALL = 9
"""Size of the text that explains, in points."""

PANEL = 6.4
"""Width of a figure of one panel, in inches."""

_TITLE, _NORMAL = 11, 10
_MARGIN = 0.12
_LINE_SPACING = 1.35
_POINTS_PER_INCH = 72
_DOTS_PER_INCH = 200
_MOST_LINES = 3
"""A longer description of model, data or passes is cut."""

_MOST_LINES_OF_PASSES = 2
"""Where it takes more to say what each pass did, only their names are given."""


class _Text(NamedTuple):
    content: str
    size: float
    weight: str = "normal"
    colour: str = "black"


def new_figure(
    comparison: Comparison, subject: str, notes: Sequence[str], width: float, height: float, panels: int = 1
) -> tuple[Any, list[Any]]:
    """A figure that no window and no global state knows, with its heading.

    Args:
        comparison: its model, data, passes, seeds and verdict make the heading.
        subject: what the figure shows, for the title.
        notes: further lines of the heading.
        width, height: of the panels together, in inches; the heading is added on top.
        panels: how many, beside each other.

    Returns:
        The figure, and its axes from left to right.
    """
    heading = [
        _Text(f"{comparison.model}: {subject}", _TITLE, "bold"),
        _Text(_verdict(comparison), _NORMAL),
        *(_Text(text, SMALL, colour=GREY) for text in (f"data: {comparison.data}", *notes)),
    ]
    if comparison.change:
        heading.append(_Text(_passes(comparison.change, width), SMALL, colour=GREY))
    lines = [
        text._replace(content=line)
        for text in heading
        for line in wrapped(text.content, width - 2 * _MARGIN, text.size, text.weight)
    ]
    heights = [line.size * _LINE_SPACING / _POINTS_PER_INCH for line in lines]
    whole = height + _MARGIN + sum(heights)
    figure = library("matplotlib.figure").Figure(figsize=(width, whole), dpi=_DOTS_PER_INCH)
    library("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    sides = _MARGIN / width
    figure.set_layout_engine("constrained", rect=(sides / 2, 0, 1 - sides, height / whole))
    top = whole - _MARGIN
    for line, space in zip(lines, heights, strict=True):
        style = {"size": line.size, "weight": line.weight, "color": line.colour}
        figure.text(sides, top / whole, line.content, va="top", parse_math=False, **style)
        top -= space
    return figure, [figure.add_subplot(1, panels, number) for number in range(1, panels + 1)]


def wrapped(text: str, width: float, size: float = _NORMAL, weight: str = "normal") -> list[str]:
    """The text in lines that are at most ``width`` inches wide when drawn; words that are longer are broken."""
    font = library("matplotlib.font_manager").FontProperties(size=size, weight=weight)
    of_text = library("matplotlib.textpath").text_to_path

    def inches(line: str) -> float:
        return float(of_text.get_text_width_height_descent(line, font, False)[0]) / _POINTS_PER_INCH

    lines_needed = max(inches(text) / width, 1)
    most = math.ceil(2 * len(text) / lines_needed)  # narrow letters may stand together
    for characters in range(max(most, 1), 0, -1):
        lines = textwrap.wrap(text, characters, max_lines=_MOST_LINES, placeholder="…")
        if all(inches(line) <= width for line in lines):
            break
    return lines


def worth_of_image_shown(training: Training) -> float | None:
    """What one test image is worth, in the unit that is shown; None where the metric counts no images."""
    worth = worth_of_image(training)
    return None if worth is None else unit_of(training, training.metric).scaled(worth)


def worth_in_words(training: Training, worth: float) -> str:
    """``one test image of 1000 = 0.1 points of top1``."""
    shown = small(worth)
    return f"one test image of {training.test_images} = {shown} point{'' if shown == '1' else 's'} of {training.metric}"


def _verdict(comparison: Comparison) -> str:
    training = comparison.training
    assert training is not None
    asked, finished = counted(len(set(training.seeds)), "seed"), len(final_values(training, training.metric))
    seeds = asked if finished == len(set(training.seeds)) else f"{finished} of {asked} finished by both"
    return f"verdict on {training.metric}: {comparison.verdict.outcome} ({seeds})"


def _passes(change: Sequence[str], width: float) -> str:
    """What each pass did, or the names of the passes alone."""
    whole = f"passes: {'; '.join(change)}"
    if len(wrapped(whole, width - 2 * _MARGIN, SMALL)) <= _MOST_LINES_OF_PASSES:
        return whole
    return f"passes: {', '.join(line.partition(':')[0] for line in change)}"
