"""The layer that stands for the resampling of a table of positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.tracing.kinds import Kind


@register_layer("position-variance/resampling")
class VarianceKeepingResampling(nn.Module):
    """``F.interpolate`` with the arguments of the call; the result has the variance of the input again.

    It is divided by the root of ``k = Var(result) / Var(input)``, taken over all values and a constant for gradients.
    Where no size changes, or a variance is 0, the result is that of ``F.interpolate``.

    Takes ``(N, C, *sizes)`` and returns ``(N, C, *new sizes)``; the same in both modes.
    """

    operation_kind = Kind.INTERPOLATE

    def forward(
        self,
        input: torch.Tensor,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> torch.Tensor:
        resampled = F.interpolate(  # type: ignore[call-overload]
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
        if resampled.shape == input.shape:
            return resampled  # type: ignore[no-any-return]
        with torch.no_grad():
            before, after = (tensor.float().var(correction=0) for tensor in (input, resampled))
            factor = (before / after).sqrt()
            factor = torch.where((before > 0) & (after > 0), factor, torch.ones_like(factor))
        return resampled * factor.to(resampled.dtype)  # type: ignore[no-any-return]
