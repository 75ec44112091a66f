"""As many groups in a group norm as keep the scale of gradients.

Rule (Kim et al., *On the Ideal Number of Groups for Isometric Gradient Propagation*, arXiv:2302.03193, abstract): the
number of groups of a group norm changes the scale of gradients; there is a number, for each layer by the architecture,
that calibrates it, so that gradients propagate isometrically.

Ours, not the paper's: how that number is found. Its closed form from the widths of a layer is not known to us and is
not shipped; ``rule=`` takes it, or any other. Our default measures the objective itself: at initialisation, layer by
layer, the gain of the gradient through weight, norm and activation, see :mod:`passes.group_count.gains`; of the
divisors of the channels inside a band it takes the one whose gain is nearest to one. The band is ours too.

Dataflow::

    x ─ weight ─[+ constant over space]─ group norm ─[dropout, scale, shift]─ activation     gain: |grad x| / |grad out|
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from passes.group_count.layers import GroupNormFunction
from passes.group_count.norms import Choosing, find_in_norms
from passes.group_count.rules import Distance, GroupChoice, Rule, channels_per_group, isometry, nearest
from rewriter.guideline import Contract, Pass, Site, Skipped
from rewriter.tracing.trace import Trace

__all__ = ["GroupChoice", "GroupCount", "GroupNormFunction", "Rule"]

_RULES = ("isometry", "channels-per-group")


@dataclass(frozen=True)
class GroupCount(Pass):
    """Set the number of groups of each group norm behind a weight.

    Attributes:
        rule: ``"isometry"``, the gradient gain nearest to one; ``"channels-per-group"``, groups of ``channels``
            channels; or a function that gets a :class:`GroupChoice` and returns one of its candidates.
        channels: channels a group for ``"channels-per-group"``.
        min_channels_per_group: the band: groups of at least so many channels,
        min_groups: and at least so many groups.
    """

    name = "group-count"
    summary = "as many groups in each group norm as keep the gradient scale through weight, norm and activation"
    paper = "Kim et al., On the Ideal Number of Groups for Isometric Gradient Propagation, arXiv:2302.03193"
    contract = Contract(eval_output=False, state_dict=True, gradients=True)
    needs_values = True

    rule: str | Rule = "isometry"
    channels: int = 16
    min_channels_per_group: int = 8
    min_groups: int = 2

    def __post_init__(self) -> None:
        if not callable(self.rule) and self.rule not in _RULES:
            expected = ", ".join(map(repr, _RULES))
            raise ValueError(f"rule: expected one of {expected}, or a function of a GroupChoice, found {self.rule!r}")
        for option in ("channels", "min_channels_per_group", "min_groups"):
            value = getattr(self, option)
            if type(value) is not int or value < 1:
                raise ValueError(f"{option}: expected a positive int, found {value!r}")

    def find(self, trace: Trace) -> Iterator[Site | Skipped]:
        band = (self.min_channels_per_group, self.min_groups)
        if callable(self.rule):
            choosing = Choosing(self.rule, f"{self.options()['rule']} chose it", None, *band)
        else:
            distance: Distance = isometry
            why = "of the numbers in the band its gradient gain is nearest to one"
            if self.rule != "isometry":
                distance = channels_per_group(self.channels)
                why = f"groups are as near to {self.channels} channels as can be"
            choosing = Choosing(nearest(distance), why, distance, *band)
        yield from find_in_norms(trace, self.name, choosing)
