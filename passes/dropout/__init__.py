"""Place dropout where it works in a network with normalisation layers.

Rule (Kim et al., *How to Use Dropout Correctly on Residual Networks with Batch Normalization*, UAI 2023,
arXiv:2302.06112, guidelines 1 and 2): one dropout in a residual branch, after its last norm and before its last weight
(P5 or P6); one in the head, after the last norm and before global average pooling (H3 or H4), not after it. In ResNet
v1, whose last norm follows the last weight, the paper puts dropout at the end of the branch. Its rate is 0.2. Dropout
on the trunk (P0) is the worst, and after the classifier (H6, H7) it is out of place.

Why, in short (our derivation): dropout keeps the mean and raises the variance, so a normalisation layer after it
collects statistics in training that do not hold at test time; and a mask on the feature map is averaged out by the
pooling, where a mask on the pooled features is not.

Not from the paper: the end of the branch for families other than ResNet v1, DenseNet layers, transformer branches,
token-mean heads, and that attention dropout (on attention weights, not on activations) is kept.

Dataflow::

    x ─┬─ … norm ─ act ─[dropout]─ last weight ─ … ─ add          features ─[dropout]─ global average pool ─ classifier
       └────────────────── shortcut ───────────────┘
    x ─┬─ … last weight ─ norm ─ gate ─[dropout]─ stochastic depth ─ add
       └────────────────── shortcut ───────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Contract, Lint, Outcome, Pass, Place

if TYPE_CHECKING:
    from rewriter.passes.dropout.assignment import Subject
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class Dropout(Pass):
    """Move dropout to where it helps; insert it there if a rate is given.

    Attributes:
        p: drop rate for every residual branch, dense layer and pooled head with a compliant place and no dropout, or
            one of rate 0: dropout is inserted or switched on. With None or 0, existing dropout is only moved.
        head_p: the same for heads; None means ``p``, and 0 leaves heads to stochastic pooling.
    """

    name = "dropout"
    summary = "one dropout in a residual branch, after its last norm; in the head before pooling, not after"
    paper = "Kim et al., How to Use Dropout Correctly on Residual Networks with Batch Normalization, UAI 2023"
    contract = Contract(eval_output=True, state_dict=True, gradients=True)
    layers = ("rewriter.passes.dropout.layers",)
    default = True
    codes = (
        Lint("RW0201", "dropout out of its place in the residual branch"),
        Lint("RW0202", "dropout behind the pooling of the head"),
        Lint("RW0203", "dropout on the trunk", "error"),
        Lint("RW0204", "dropout of the predictions", "error"),
        Lint("RW0205", "several dropouts where one belongs"),
        Lint("RW0206", "dropout before the batch norm of the head"),
    )

    p: float | None = None
    head_p: float | None = None

    def __post_init__(self) -> None:
        for option in ("p", "head_p"):
            rate = getattr(self, option)
            if rate is not None and not (isinstance(rate, (int, float)) and 0 <= rate < 1):
                raise ValueError(f"dropout: {option} is a drop rate, expected 0 <= {option} < 1, found {rate!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Subject]]:
        from rewriter.passes.dropout.assignment import find_places

        return find_places(trace)

    def decide(self, place: Place[Subject]) -> Iterator[Outcome]:
        in_head = place.pattern == "head" and self.head_p is not None
        return place.subject.decide(place, self.head_p if in_head else self.p)
