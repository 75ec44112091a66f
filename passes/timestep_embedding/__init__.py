"""Keep timestep embeddings from disappearing in the next norm.

Rule (*Disappearance of timestep embedding*, arXiv:2405.14126; we read a summary and the reviews): time enters a network
as one number a channel, constant over space, added to a map (diffusion) or concatenated with it as a plane (ConcatConv
of neural ODEs). A norm that follows, over space, takes out what is constant over space: a batch norm, or a group norm
with few channels a group. The network then no longer knows the time. The paper's remedies are an embedding that varies
over space and fewer groups; a third, biases of the timestep branch that start elsewhere than at zero, is not done here.

Not from the paper: that remedies are chosen by measured time-awareness
(:mod:`passes.timestep_embedding.awareness`), the share that has to be kept, the form of the embedding that varies over
space, and which additions are found. Adaptive norms, which scale and shift behind the norm, are fine.

Dataflow::

    image ─ … ─ map ─────┐
    timestep ─ … ─ (B, C, 1, 1) ─ sum ─ [sum, pooling, scale] ─ norm ─ activation ─ weight
    timestep ─ … ─ plane ─ concatenation ─ convolution ─────────┘

Edits: ``num_groups`` of the norm; or ``map + embedding`` becomes ``map + embedding * (1 + positions)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place

if TYPE_CHECKING:
    from rewriter.passes.timestep_embedding.fixes import Block
    from rewriter.tracing.trace import Trace

__all__ = ["TimestepEmbedding"]

_FIXES = ("groups", "position")


@dataclass(frozen=True)
class TimestepEmbedding(Pass):
    """Keep timestep embeddings from being taken out by the next norm.

    Attributes:
        fix: ``"groups"``, fewer groups in group norms, by measurement; ``"position"``, the embedding varies over space,
            which also helps with batch and instance norms.
        keep: the share of the time-awareness of a single group below which a group norm is changed, and which it has
            afterwards.
    """

    name = "timestep-embedding"
    summary = "keep timestep embeddings from being taken out by the next norm"
    paper = "The Disappearance of Timestep Embedding in Modern Time-Dependent Neural Networks, arXiv:2405.14126"
    contract = Contract(eval_output=False, state_dict=True, gradients=True, adds_parameters=True)
    layers = ("rewriter.passes.timestep_embedding.layers", "rewriter.passes.group_count.layers")
    codes = (
        Lint("RW0801", "a norm takes out the timestep embedding"),
        Lint("RW0802", "groups of few channels take out part of the timestep embedding"),
    )

    fix: str = "groups"
    keep: float = 0.96

    def __post_init__(self) -> None:
        if self.fix not in _FIXES:
            raise ValueError(f"fix: expected {' or '.join(map(repr, _FIXES))}, found {self.fix!r}")
        if type(self.keep) not in (int, float) or not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a number above 0 and up to 1, found {self.keep!r}")

    @property
    def measures(self) -> bool:
        return True

    @property
    def needs_values(self) -> bool:
        return True

    def candidates(self, trace: Trace) -> Iterator[Place[Block]]:
        from rewriter.passes.timestep_embedding.fixes import find_places

        return find_places(trace, self.fix)

    def decide(self, place: Place[Block]) -> Change:
        from rewriter.passes.timestep_embedding.fixes import mend

        return mend(place, self.fix, self.keep)
