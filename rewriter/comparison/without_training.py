"""The verdict where nothing was trained: what the outputs and the metrics of trained weights say."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.comparison.data import Equivalence, Trained
from rewriter.comparison.units import Unit, small
from rewriter.errors import listed
from rewriter.text import counted

ALL = "all"
"""Name of the row for all passes together."""


def sentence(equivalence: Sequence[Equivalence], trained: Trained | None) -> str:
    """What was found, and that no training was compared."""
    parts = []
    if equivalence:
        parts.append(_outputs(equivalence))
    if trained is not None:
        parts.append(_metrics(trained))
    return "; ".join([*parts, "no training was compared"] if parts else ["undecided: no training was compared"])


def _outputs(found: Sequence[Equivalence]) -> str:
    last = next((item for item in found if item.name == ALL), found[-1])
    images = counted(last.images, "image")
    if any(last.not_finite):
        before, after = last.not_finite
        return f"the output in evaluation mode is not finite on {before} (before) and {after} (after) of {images}"
    if last.identical:
        return f"the output in evaluation mode is bit-identical on {images}"
    if last.identical is None:
        return (
            f"undecided whether the output in evaluation mode is the same: on {images} it differs by up to "
            f"{small(last.max_difference)}, the original from itself by up to {small(last.spread)}"
        )
    passes = [item.name for item in found if item.name != ALL and item.identical is False]
    by = f", changed by {listed(passes)}" if passes else ""
    return f"the output in evaluation mode differs by up to {small(last.max_difference)} on {images}{by}"


def _metrics(trained: Trained) -> str:
    same, parts = [], []
    for name in trained.before:
        before, after = trained.before[name], trained.after[name]
        unit = Unit.of(name, (before, after))
        if before == after:
            same.append(name)
        else:
            decimals = unit.telling((before, after))
            shown = f"{unit.number(before, decimals)} before and {unit.number(after, decimals)} after"
            parts.append(f"{unit.label}: {shown}")
    if same:
        parts.append(f"{listed(same)} {'is' if len(same) == 1 else 'are'} the same")
    weights = "created" if trained.as_created else "they are"
    return f"with the weights as {weights}, on {counted(len(trained.rows), 'image')}, {', '.join(parts)}"
