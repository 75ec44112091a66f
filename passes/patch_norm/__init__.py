"""Normalise the patches of a vision transformer before their positions are added.

Rule (Kim et al., *Improved Robustness of Vision Transformer via PreLayerNorm in Patch Embedding*, arXiv:2111.08413; we
read the abstract and a summary): a vision transformer degrades when the contrast of its images changes, because the
patch embedding scales with the image and the positional embedding does not. A layer norm in the patch embedding, before
the position is added, makes it invariant to the scale. The summary has the norm on raw or on projected patches; we
cannot tell which the paper means, so both are options.

Why, in short (our derivation): the sum ``W x + b + position`` is followed by a layer norm, so what counts is the ratio
of its two parts, and an image of contrast ``a`` has ``a`` times as much of the first. Behind the projection the norm
gives ``LN(a W x + b) = LN(W x + b / a)``: the same for every ``a`` if the projection has no bias, and nearly the same
where ``b / a`` is small beside ``W x``. On raw patches ``LN(a x + c) = LN(x)`` for every contrast and brightness, with
a bias or without; then every patch has the same variance, flat ones too.

Not from the paper: the epsilon (1e-6), the form for raw patches in front of a convolution, and what counts as a patch
embedding.

Dataflow::

    image ─[norm]─ projection of patches ─ flatten, transpose ─[norm]─[concat]─ sum ─ …
           "patches"                                "projection"  class token ┘    └ position
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place

if TYPE_CHECKING:
    from rewriter.analysis.absolute_positions import AbsolutePosition
    from rewriter.tracing.trace import Trace

_WHERE = ("projection", "patches")


@dataclass(frozen=True)
class PatchNorm(Pass):
    """Put a layer norm into the patch embedding, before the position is added; class tokens are left alone.

    Attributes:
        where: ``"projection"`` for a norm of each projected token, ``"patches"`` for a norm of each raw patch, over its
            height, width and channels, before the projection.
    """

    name = "patch-norm"
    summary = "a layer norm in the patch embedding of a vision transformer, before the position is added"
    paper = (
        "Kim et al., Improved Robustness of Vision Transformer via PreLayerNorm in Patch Embedding, arXiv:2111.08413"
    )
    contract = Contract(eval_output=False, state_dict=True, gradients=True, adds_parameters=True)
    layers = ("rewriter.passes.patch_norm.layers",)
    codes = (Lint("RW0901", "a patch embedding that follows the contrast of the image", "note"),)

    where: str = "projection"

    def __post_init__(self) -> None:
        if self.where not in _WHERE:
            raise ValueError(f"where: expected {' or '.join(map(repr, _WHERE))}, found {self.where!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[AbsolutePosition]]:
        from rewriter.passes.patch_norm.places import find_places

        return find_places(trace)

    def decide(self, place: Place[AbsolutePosition]) -> Change:
        from rewriter.passes.patch_norm.places import normalise

        return normalise(place, self.where)
