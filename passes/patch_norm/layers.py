"""The norms that the pass inserts: of projected tokens, and of raw patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.added import AddedLayer
from rewriter.layers.registry import register_layer
from rewriter.tracing.kinds import Kind

EPS = 1e-6
"""As in the vision transformers of timm."""


@register_layer("patch-norm/tokens")
class TokenNorm(AddedLayer, nn.LayerNorm):
    """A layer norm of each token, over its channels.

    Takes and returns tokens of shape ``(N, …, C)``, or maps of shape ``(N, C, …)`` with ``channels_first``; the same in
    both modes.

    Args:
        width: the number of channels C.
        channels_first: whether channels are the second dimension and not the last.
    """

    operation_kind = Kind.NORM

    def __init__(self, width: int, channels_first: bool = False) -> None:
        super().__init__(width, eps=EPS)
        self.channels_first = channels_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.channels_first:
            return super().forward(x)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@register_layer("patch-norm/patches")
class RawPatchNorm(AddedLayer):
    """A layer norm of each patch of an image, over its channels, height and width.

    Patches lie side by side from the first row and column on, as those that a convolution reads whose stride is its
    kernel. What is left of an image at its end, and no patch covers, is cut off: that convolution does not read it.

    Takes images of shape ``(N, C, *sizes)`` and returns ``(N, C, *sizes)``, with sizes rounded down to whole patches;
    the same in both modes. Weight and bias have one value for each of the ``C * prod(kernel)`` values of a patch, in
    the order of the weight of that convolution.

    Args:
        channels: the number of channels C.
        kernel: the sizes of a patch.
    """

    operation_kind = Kind.NORM

    def __init__(self, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.kernel = channels, tuple(kernel)
        width = channels * math.prod(self.kernel)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dims = range(len(self.kernel))
        grid = [x.shape[2 + d] // self.kernel[d] for d in dims]
        for d in dims:
            x = x.narrow(2 + d, 0, grid[d] * self.kernel[d])
        whole = x.shape
        # (N, C, rows, height, columns, width) -> (N, rows, columns, C, height, width)
        order = [0, *(2 + 2 * d for d in dims), 1, *(3 + 2 * d for d in dims)]
        sizes = [size for pair in zip(grid, self.kernel, strict=True) for size in pair]
        patches = x.reshape(*x.shape[:2], *sizes).permute(order)
        values = patches.flatten(1 + len(self.kernel))
        values = F.layer_norm(values, values.shape[-1:], self.weight, self.bias, EPS)
        back = [order.index(d) for d in range(len(order))]
        return values.reshape(patches.shape).permute(back).reshape(whole)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kernel={self.kernel}, eps={EPS}"
