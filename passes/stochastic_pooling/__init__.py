"""Average a random subset of the elements of an average pooling in training.

Rule (Kim et al., *Stochastic Subsampling With Average Pooling*, arXiv:2409.16630): in training, an average pooling
averages a random subset of its elements, a share ``p`` of them, in a window shrunk to match, times ``sqrt(p)``; in
evaluation it is plain average pooling. A drop-in replacement for global average pooling; ``p`` of about 0.5 and one
subset for all channels work best.

Why, in short (our derivation): unlike dropout, which zeroes and rescales, a subset leaves the mean and variance of the
elements as they are; the average of fewer zero-mean, uncorrelated elements has a variance larger by ``1 / p``, which
the factor ``sqrt(p)`` compensates. For elements with a mean, such as the output of a ReLU, the factor shrinks the mean
in training: ``scale="none"`` leaves it out.

Not from the paper: which poolings other than global ones are changed, a separate subset for each local window and
adaptive bin, and that a head that has dropout keeps it instead.

Dataflow::

    features ─ average pool ─ classifier                                     head
    features ─┬─ average pool ─ weight ─ upsample ─┬─ concat ─ …             pyramid
              └────────────────────────────────────┘
    … ─ weight ─ average pool ─ …                                            local, on the main path
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewriter.authoring import Change, Contract, Lint, Pass, Place
from rewriter.passes.stochastic_pooling.options import checked_keep_prob, checked_scale

if TYPE_CHECKING:
    from rewriter.passes.stochastic_pooling.layers import StochasticAdaptiveAvgPool1d as StochasticAdaptiveAvgPool1d
    from rewriter.passes.stochastic_pooling.layers import StochasticAdaptiveAvgPool2d as StochasticAdaptiveAvgPool2d
    from rewriter.passes.stochastic_pooling.layers import StochasticAvgPool1d as StochasticAvgPool1d
    from rewriter.passes.stochastic_pooling.layers import StochasticAvgPool2d as StochasticAvgPool2d
    from rewriter.passes.stochastic_pooling.layers import StochasticMean as StochasticMean
    from rewriter.passes.stochastic_pooling.pools import Subject
    from rewriter.tracing.trace import Trace

__all__ = [
    "StochasticAdaptiveAvgPool1d", "StochasticAdaptiveAvgPool2d", "StochasticAvgPool1d", "StochasticAvgPool2d",
    "StochasticMean", "StochasticPooling",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the layers on first use, since they need torch and the pass itself does not."""
    if name in __all__:
        from rewriter.passes.stochastic_pooling import layers

        return getattr(layers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class StochasticPooling(Pass):
    """Make average poolings average a random subset in training.

    Attributes:
        keep_prob: share of the elements that are averaged, ``0 < keep_prob <= 1``.
        scale: ``"sqrt"``, the published factor ``sqrt(keep_prob)``, or ``"none"``, which keeps the mean.
        squeeze: whether the poolings of squeeze-and-excitation and other gates are changed too.
    """

    name = "stochastic-pooling"
    summary = "average pooling that averages a random subset of its elements in training"
    paper = "Kim et al., Stochastic Subsampling With Average Pooling, arXiv:2409.16630"
    contract = Contract(eval_output=True, state_dict=True, gradients=True)
    after = ("dropout",)
    layers = ("rewriter.passes.stochastic_pooling.layers",)
    default = True
    codes = (Lint("RW0301", "an average pooling could be stochastic", "note"),)

    keep_prob: float = 0.5
    scale: str = "sqrt"
    squeeze: bool = False

    def __post_init__(self) -> None:
        checked_keep_prob(self.keep_prob)
        checked_scale(self.scale)
        if not isinstance(self.squeeze, bool):
            raise ValueError(f"squeeze: expected True or False, found {self.squeeze!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Subject]]:
        from rewriter.passes.stochastic_pooling.pools import find_places

        return find_places(trace)

    def decide(self, place: Place[Subject]) -> Change:
        from rewriter.passes.stochastic_pooling.pools import sample

        return sample(place, self.keep_prob, self.scale, self.squeeze)
