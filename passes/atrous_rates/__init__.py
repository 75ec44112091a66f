"""Set the dilations of atrous spatial pyramid pooling to fit the feature map.

Rule (Kim et al., *Resolution-Aware Design of Atrous Rates for Semantic Segmentation Networks*, arXiv:2307.14179,
abstract): fixed rates restrict the field of view of ASPP; the best rates follow the size of the input image.

The paper's formula is not known to us. The rule used here (:mod:`passes.atrous_rates.rule`) takes rates ``R, 2R, …,
nR`` that maximise the reach of the taps times how often they lie inside the map rather than in its padding. For three
rates ``R = 0.183 H``: DeepLabV3's (6, 12, 18) on its 33x33 map, and (12, 24, 36) on 65x65. ``rule=`` replaces it.

Also not from the paper: the smaller side of a non-square map decides, and the map is that of the training resolution.

Dataflow::

          ┌─ 3x3, dilation R  ─ norm ─ act ─┐
    map ──┼─ 3x3, dilation 2R ─ norm ─ act ─┼─ concatenation ─ …       optionally with a 1x1 convolution
          └─ 3x3, dilation 3R ─ norm ─ act ─┘                          and a pooled, upsampled branch

The edit sets ``dilation`` and ``padding`` of the convolutions; weights and shapes are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place
from rewriter.passes.atrous_rates.rule import RateRule, coverage

if TYPE_CHECKING:
    from rewriter.analysis.aspp import AtrousPyramid
    from rewriter.tracing.trace import Trace

__all__ = ["AtrousRates", "RateRule"]


@dataclass(frozen=True)
class AtrousRates(Pass):
    """Set the dilations of every ASPP module to fit the training resolution.

    Attributes:
        rule: ``"coverage"``, the rule above, or a function ``(map_side, number_of_rates, kernel_size)`` that returns as
            many increasing dilations, each above 1. Plans store the function's name, not the function.
    """

    name = "atrous-rates"
    summary = "dilations of atrous spatial pyramid pooling that fit the map at the training resolution"
    paper = "Kim et al., Resolution-Aware Design of Atrous Rates for Semantic Segmentation Networks, arXiv:2307.14179"
    contract = Contract(eval_output=False, state_dict=True, gradients=True)
    default = True
    codes = (Lint("RW0401", "dilations that do not fit the size of the map"),)

    rule: str | RateRule = "coverage"

    def __post_init__(self) -> None:
        if self.rule != "coverage" and not callable(self.rule):
            raise ValueError(
                "rule: expected 'coverage' or a function "
                f"(map_side, number_of_rates, kernel_size) -> dilations, found {self.rule!r}"
            )

    def candidates(self, trace: Trace) -> Iterator[Place[list[AtrousPyramid]]]:
        from rewriter.passes.atrous_rates.sites import pyramids

        return pyramids(trace)

    def decide(self, place: Place[list[AtrousPyramid]]) -> Change:
        from rewriter.passes.atrous_rates.sites import dilate

        return dilate(place, self.rule if callable(self.rule) else coverage)
