"""Output shapes of common leaf modules without running them: batch norm alone costs more on meta than all the rest."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from rewriter.tracing.kinds import Kind

_PLAIN_CONVS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


def predict(module: nn.Module, kind: Kind, x: torch.Tensor) -> torch.Tensor | None:
    """What ``module(x)`` would return, as an empty tensor; None where the module has to be run to know.

    Inputs that do not fit are never predicted, so that the module itself raises its own error.
    """
    if kind is Kind.ACTIVATION and not isinstance(module, nn.GLU):
        return x if getattr(module, "inplace", False) else torch.empty_like(x)
    if kind is Kind.DROPOUT:
        return x if getattr(module, "inplace", False) and module.training else torch.empty_like(x)
    if kind is Kind.NORM:
        fits = not isinstance(module, _NormBase) or (x.dim() > 2 and x.shape[1] == module.num_features)
        return torch.empty_like(x) if fits and isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm)) else None
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        fits = x.dim() > 0 and x.shape[-1] == module.in_features
        return x.new_empty((*x.shape[:-1], module.out_features)) if fits else None
    if isinstance(module, _ConvNd) and type(module).forward in _PLAIN_CONVS:
        return _convolve(module, x)
    return None


def _convolve(conv: _ConvNd, x: torch.Tensor) -> torch.Tensor | None:
    spatial = len(conv.kernel_size)
    if x.dim() != spatial + 2 or x.shape[1] != conv.in_channels or isinstance(conv.padding, str):
        return None
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
        )
    ]
    return x.new_empty((x.shape[0], conv.out_channels, *sizes)) if min(sizes) > 0 else None
