"""How much of an embedding a norm takes out: measured, or by a law where nothing can be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rewriter.analysis.naming import name_of
from rewriter.passes.timestep_embedding.awareness import Awareness, measured
from rewriter.passes.timestep_embedding.readers import Read, Taker, key
from rewriter.tracing.trace import Trace

TAKEN_OUT, PARTLY = "RW0801", "RW0802"

_LEAST = 1e-6
"""A relative change from which an embedding counts as one that changes: below it is rounding."""


@dataclass(frozen=True)
class Loss:
    """What one norm takes out of one embedding.

    Attributes:
        read, taker: the embedding and the norm.
        by_groups: the time-awareness for each possible number of groups; for one that has none, empty.
        now: the time-awareness as it is.
        placed: with the embedding varying over space; None if it was not measured.
        how: where the numbers come from.
    """

    read: Read
    taker: Taker
    by_groups: Mapping[int, float]
    now: float
    placed: float | None
    how: str

    @property
    def share(self) -> float:
        """The part of the time-awareness that is kept, of what a single group would keep."""
        return self.share_with(self.taker.group.num_groups) if self.taker.group is not None else 0.0

    def share_with(self, groups: int) -> float:
        """The same with another number of groups."""
        if not self.read.joining.differs_between_channels or not self.by_groups[1]:
            return 0.0
        return min(1.0, self.by_groups[groups] / self.by_groups[1])

    @property
    def code(self) -> str:
        group = self.taker.group
        wholly = group is None or group.num_groups == group.channels or not self.read.joining.differs_between_channels
        return TAKEN_OUT if wholly else PARTLY

    @property
    def told(self) -> str:
        """What the norm does, in words."""
        name, group = name_of(self.taker.norm), self.taker.group
        if group is not None:
            each = group.channels // group.num_groups
            return f"{name} normalises groups of {each} channel{'s' if each > 1 else ''}"
        if self.taker.by_batch:
            return f"{name} takes out what is constant over batch and space: a timestep that the batch shares"
        return f"{name} takes out what is constant over space"


def loss_of(trace: Trace, read: Read, taker: Taker) -> Loss:
    """How much the norm ``taker`` takes out of the embedding of ``read``."""
    found = measured(trace)
    block = found.blocks.get((key(read.joining.node), key(taker.norm)))
    if block is not None and _tells(block, taker):
        how = f"measured on the model's weights between {found.between}"
        return Loss(read, taker, block.by_groups, block.now, block.placed, how)
    by_groups = _law(taker)
    now = by_groups[taker.group.num_groups] if taker.group is not None else 0.0
    why = found.why_not or ("the embedding does not change yet" if block is not None else "it cannot be measured there")
    return Loss(read, taker, by_groups, now, None, f"by the law sqrt(1 - 1 / channels a group), since {why}")


def _tells(block: Awareness, taker: Taker) -> bool:
    return block.by_groups[1] > _LEAST if taker.group is not None else block.placed > _LEAST


def _law(taker: Taker) -> dict[int, float]:
    """The time-awareness for embeddings that are independent between channels, relative to that of many channels."""
    if taker.group is None:
        return {}
    channels, groups = taker.group.channels, taker.group.num_groups
    return {n: math.sqrt(1 - n / channels) for n in range(1, groups + 1) if channels % n == 0}
