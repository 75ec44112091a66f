"""Output shapes of common operations without running them: batch norm alone costs more on meta than all the rest.

Inputs that do not fit are never predicted, so that the operation itself raises its own error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from rewriter.inputs import tensors_in
from rewriter.tracing.kinds import Kind

_PLAIN_CONVS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
_PLAIN_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def predict_module(module: nn.Module, kind: Kind, x: torch.Tensor) -> torch.Tensor | None:
    """What ``module(x)`` would return, as an empty tensor; None where the module has to be run to know."""
    if kind is Kind.ACTIVATION and not isinstance(module, nn.GLU):
        return x if getattr(module, "inplace", False) else _like(x)
    if kind is Kind.DROPOUT:
        return x if getattr(module, "inplace", False) and module.training else _like(x)
    if kind is Kind.NORM:
        fits = not isinstance(module, _NormBase) or (x.dim() > 2 and x.shape[1] == module.num_features)
        return _like(x) if fits and isinstance(module, _PLAIN_NORMS) else None
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        fits = x.dim() > 0 and x.shape[-1] == module.in_features
        return x.new_empty((*x.shape[:-1], module.out_features)) if fits else None
    if isinstance(module, _ConvNd) and type(module).forward in _PLAIN_CONVS:
        return _convolve(module, x)
    return None


def predict_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """What ``function(*args, **kwargs)`` would return, as an empty tensor; None where it has to be run to know.

    Of the side effects, the version counters of a batch norm's running statistics go up.
    """
    rule = _RULES.get(function)
    if rule is None or not all(t.is_meta for t in tensors_in((args, kwargs))):
        return None
    return rule(*args, **kwargs)


def _like(x: torch.Tensor) -> torch.Tensor:
    if x.is_contiguous():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return torch.empty_like(x)  # on meta decomposed in Python


def _same_shape(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
    return _like(x) if x.is_floating_point() else None


def _combine(x: Any, y: Any, **options: Any) -> torch.Tensor | None:
    """Arithmetic of a floating-point tensor and a number, or a tensor that is stretched to the shape of the first."""
    if options or not isinstance(x, torch.Tensor) or not x.is_floating_point() or not x.is_contiguous():
        return None
    if isinstance(y, torch.Tensor):
        fits = y.dtype == x.dtype and y.dim() <= x.dim() and y.is_contiguous()
        fits = fits and all(size in (1, full) for size, full in zip(reversed(y.shape), reversed(x.shape), strict=False))
    else:
        fits = type(y) in (int, float)
    return _like(x) if fits else None


def _batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    statistics = [t for t in (running_mean, running_var) if t is not None]
    if x.dim() < 2 or any(t is not None and t.shape != x.shape[1:2] for t in (*statistics, weight, bias)):
        return None
    if x.numel() <= x.shape[1] if training else len(statistics) < 2:
        return None
    for tensor in statistics if training else ():
        torch.autograd.graph.increment_version(tensor)
    return _like(x)


def _group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    fits = x.dim() > 1 and x.shape[1] % num_groups == 0 and x.numel() > num_groups
    return _like(x) if fits and all(t is None or t.shape == x.shape[1:2] for t in (weight, bias)) else None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    fits = (
        attn_mask is None
        and not enable_gqa
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] == value.shape[-2]
        and query.dtype == key.dtype == value.dtype
    )
    return query.new_empty((*query.shape[:-1], value.shape[-1])) if fits else None


_RULES: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    F.scaled_dot_product_attention: _attend,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.gelu: _same_shape,
    F.normalize: _same_shape,
    torch.add: _combine,
    torch.mul: _combine,
    torch.Tensor.add: _combine,
    torch.Tensor.mul: _combine,
}


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
