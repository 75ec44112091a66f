"""Pad kernels to a multiple of their stride, so that every pixel counts in as many positions as its neighbours.

Rule (Kim et al., *Dead pixel test using effective receptive field*, arXiv:2108.13576, Pattern Recognition Letters 2023;
read in full): a kernel whose size is no multiple of its stride covers pixels unevenly, an odd kernel with an even
stride in a checkerboard; a kernel smaller than its stride skips pixels. Such kernels are padded with zeros at the
bottom and at the right: 7x7/2 becomes 8x8, 3x3/2 becomes 4x4, 1x1/2 becomes 2x2, the 3x3/2 max pooling 4x4. At first
the output is the same; in fine-tuning the new weights train. The gradient then spreads more evenly over the pixels,
which helps where objects are tiny, and **ordinary accuracy falls** (ResNet-101 on Caltech-101: 95.28 to 94.07 %).

Not from the paper: kernels and strides of other sizes; that a convolution which pads by itself gets its zeros where its
output stays the same (at the top and left for TensorFlow's padding); that odd maps are refused, and what a map that
becomes odd later is padded with; the loading of checkpoints.

Dataflow::

    … ─ conv 3x3/2 ─ …     each column is read by 1 or 2 positions:   1 2 1 2 1 2
    … ─ conv 4x4/2 ─ …     by 2, as soon as the zeros are trained:    2 2 2 2 2 2
    … ─ conv 1x1/2 ─ …     by 1 or none:                              1 0 1 0 1 0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place, Refused

if TYPE_CHECKING:
    from rewriter.passes.kernel_padding.windows import Window
    from rewriter.tracing.trace import Trace

_CONVOLUTIONS = Contract(eval_output=True, state_dict=False, rounding=True)
_POOLS_TOO = Contract(eval_output=False, state_dict=False)


@dataclass(frozen=True)
class KernelPadding(Pass):
    """Pad kernels with zeros to a multiple of their stride.

    Attributes:
        pools: whether poolings get larger windows too. That is not exact: a maximum over 4x4 is often another one than
            over 3x3, so the output changes, and the contract says so.
    """

    name = "kernel-padding"
    summary = "pad kernels to a multiple of their stride, so that neighbouring pixels count alike"
    paper = "Kim et al., Dead pixel test using effective receptive field, arXiv:2108.13576"
    contract = _CONVOLUTIONS
    layers = ("rewriter.passes.kernel_padding.layers",)
    codes = (
        Lint("RW1301", "the kernel is no multiple of its stride: it covers pixels unevenly", "note"),
        Lint("RW1302", "the kernel is smaller than its stride: it skips pixels", "note"),
    )

    pools: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pools, bool):
            raise ValueError(f"pools: expected True or False, found {self.pools!r}")
        if self.pools:
            object.__setattr__(self, "contract", _POOLS_TOO)

    def candidates(self, trace: Trace) -> Iterator[Place[Window]]:
        from rewriter.passes.kernel_padding.windows import uneven_windows

        for node, window in uneven_windows(trace):
            yield Place(trace, node, f"{window.what} {window.size}", window)

    def decide(self, place: Place[Window]) -> Change:
        from rewriter.passes.kernel_padding.convolutions import pad_convolution
        from rewriter.passes.kernel_padding.pools import widen_pool

        try:
            return widen_pool(place, self.pools) if place.subject.pools else pad_convolution(place)
        except Refused as refused:
            refused.code = place.subject.code
            raise
