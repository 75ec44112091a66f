"""Equalize the scale of the feature maps that a segmentation decoder fuses.

Rule (Kim and Kim, *Scale equalization for multi-level feature fusion*, arXiv:2402.01149; we read the abstract and a
summary): bilinear upsampling lowers the variance of a map, so maps of several levels meet at a fusion with unequal
scale, and their weights get gradients of unequal scale. Each fused map is normalised, after upsampling and before the
fusion, by its mean and standard deviation over the data set: ``(x - mean) / std``. These are constants: no parameters
and no batch statistics.

Why, in short (our derivation): for independent positions of variance v, bilinear upsampling by an even factor s leaves
``v ((4 s^2 - 1) / (6 s^2))^2``, some 0.39 v to 0.44 v; the smoother the map, the less it shrinks. So the constants have
to be measured: :func:`rewriter.calibrate`.

Not from the paper: one pair of constants per map (not per channel), that maps which were not upsampled are equalized
too, which joins count as fusions, sums (``additive=True``), and how the data are run for calibration.

Dataflow::

    level 1 ───────────────────────[equalizer]─┐
    level 2 ─ … ─ bilinear upsample [equalizer]─┼─ concat ─ … ─ weight
    level 3 ─ … ─ bilinear upsample [equalizer]─┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place
from rewriter.tracing.facts import facts

if TYPE_CHECKING:
    from rewriter.analysis.fusions import Fusion
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class ScaleEqualizer(Pass):
    """Normalise every fused map by constants of the data set.

    Attributes:
        additive: whether sums of maps are equalized too, not only concatenations.
    """

    name = "scale-equalizer"
    summary = "normalise multi-level features by constants of the data, after bilinear upsampling and before fusion"
    paper = "Kim and Kim, Scale equalization for multi-level feature fusion, arXiv:2402.01149"
    contract = Contract(eval_output=True, state_dict=True, gradients=True, adds_buffers=True)
    after = ("atrous-rates", "group-count")
    layers = ("rewriter.passes.scale_equalizer.layers",)
    default = True
    codes = (Lint("RW0101", "maps of different scales are fused"),)

    additive: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.additive, bool):
            raise ValueError(f"additive: expected True or False, found {self.additive!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Fusion]]:
        from rewriter.analysis.fusions import find_fusions

        for fusion in find_fusions(trace.train.dataflow, trace.model):
            path, pattern = facts(fusion.join)["owner"].path, f"{fusion.form} of {len(fusion.operands)} maps"
            yield Place(trace, fusion.join, pattern, fusion, path=path)

    def decide(self, place: Place[Fusion]) -> Change:
        from rewriter.passes.scale_equalizer.sites import equalize

        return equalize(place, self.additive)
