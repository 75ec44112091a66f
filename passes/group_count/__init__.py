"""Set the number of groups of each group norm to preserve the scale of gradients.

Rule (Kim et al., *On the Ideal Number of Groups for Isometric Gradient Propagation*, arXiv:2302.03193, abstract): the
number of groups of a group norm changes the scale of gradients; for each layer the architecture determines a number
that calibrates it, so that gradients propagate isometrically.

Not from the paper: how that number is found. The closed form from the widths of a layer is not known to us and is not
shipped; ``rule=`` accepts it, or any other. The default uses the objective itself: the gain of the gradient through
weight, norm and activation (:mod:`passes.group_count.gains`), expected over draws of all weights, so that every process
that builds the model finds the same number. Among the divisors of the channels inside a band, those whose gain is
closest to one, within a tolerance, count as equal; of these it takes the one nearest to the present number. The band
and the tolerance are ours too.

Dataflow::

    x ─ weight ─[+ constant over space]─ group norm ─[dropout, scale, shift]─ activation     gain: |grad x| / |grad out|
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place
from rewriter.passes.group_count.rules import (
    Choosing,
    GroupChoice,
    Rule,
    channels_per_group,
    isometry,
    nearest,
    nearest_to_present,
    slack,
)

if TYPE_CHECKING:
    from rewriter.passes.group_count.norms import Subject
    from rewriter.tracing.trace import Trace

__all__ = ["GroupChoice", "GroupCount", "Rule"]

_RULES = ("isometry", "measured-isometry", "channels-per-group")


@dataclass(frozen=True)
class GroupCount(Pass):
    """Set the number of groups of each group norm after a weight.

    Attributes:
        rule: ``"isometry"``, a gradient gain close to one, expected over draws of the weights;
            ``"measured-isometry"``, the gain closest to one on this process's weights and the given inputs, so that
            another process finds other numbers; ``"channels-per-group"``, groups of ``channels`` channels; or a
            function that takes a :class:`GroupChoice` and returns one of its candidates.
        tolerance: for ``"isometry"``, how far in ratio a gain may be from the best to count as equal: 0.05 for 5 %.
        channels: channels per group for ``"channels-per-group"``.
        min_channels_per_group: lower limit of the band on the channels per group.
        min_groups: lower limit of the band on the number of groups.
    """

    name = "group-count"
    summary = "as many groups in each group norm as keep the gradient scale through weight, norm and activation"
    paper = "Kim et al., On the Ideal Number of Groups for Isometric Gradient Propagation, arXiv:2302.03193"
    contract = Contract(eval_output=False, state_dict=True, gradients=True)
    layers = ("rewriter.passes.group_count.layers",)
    default = True
    codes = (Lint("RW0501", "a number of groups that does not keep the gradient's scale", "note"),)

    rule: str | Rule = "isometry"
    tolerance: float = 0.05
    channels: int = 16
    min_channels_per_group: int = 8
    min_groups: int = 2

    def __post_init__(self) -> None:
        if not callable(self.rule) and self.rule not in _RULES:
            expected = ", ".join(map(repr, _RULES))
            raise ValueError(f"rule: expected one of {expected}, or a function of a GroupChoice, found {self.rule!r}")
        if type(self.tolerance) not in (int, float) or not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance: expected a number from 0 on, found {self.tolerance!r}")
        for option in ("channels", "min_channels_per_group", "min_groups"):
            value = getattr(self, option)
            if type(value) is not int or value < 1:
                raise ValueError(f"{option}: expected a positive int, found {value!r}")

    @property
    def measures(self) -> bool:
        return self.rule != "channels-per-group"

    @property
    def needs_values(self) -> bool:
        return self.rule == "measured-isometry"

    def candidates(self, trace: Trace) -> Iterator[Place[Subject]]:
        from rewriter.passes.group_count.norms import find_places

        return find_places(trace, self._choosing())

    def decide(self, place: Place[Subject]) -> Change:
        from rewriter.passes.group_count.norms import set_groups

        return set_groups(place)

    def _choosing(self) -> Choosing:
        band = (self.min_channels_per_group, self.min_groups)
        if callable(self.rule):
            return Choosing(self.rule, f"{self.options()['rule']} chose it", None, *band)
        if self.rule == "channels-per-group":
            distance = channels_per_group(self.channels)
            why = f"groups are as near to {self.channels} channels as can be"
            return Choosing(nearest(distance), why, distance, *band)
        if self.rule == "measured-isometry":
            why = "of the numbers in the band its gradient gain is nearest to one"
            return Choosing(nearest(isometry), why, isometry, *band, on_values=True)
        rule = nearest_to_present(isometry, self.tolerance)
        why = f"its gradient gain is as near to one as can be, within {self.tolerance * 100:g} %"
        why += ", and of such numbers in the band it is nearest to the present one"
        return Choosing(rule, why, isometry, *band, slack(self.tolerance))
