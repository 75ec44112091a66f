"""Output shapes of common operations without running them: batch norm alone costs more on meta than all the rest.

Inputs that do not fit are never predicted, so that the operation itself raises its own error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from rewriter.inputs import tensors_in
from rewriter.tracing.kinds import Kind, forward_owner

_PLAIN_CONVS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
_PLAIN_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def predict_module(module: nn.Module, kind: Kind, x: torch.Tensor) -> torch.Tensor | None:
    """What ``module(x)`` would return, as an empty tensor; None where the module has to be run to know."""
    if not any(base.__module__.startswith("torch.nn.modules.") for base in forward_owner(module).__mro__[:-2]):
        return None  # a forward that is put in front of the layer's
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


class PredictedCalls(TorchFunctionMode):
    """Inside, functions whose result can be predicted are not run on meta tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call(func, args, kwargs or {})


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function(*args, **kwargs)``; on meta tensors an empty tensor of the same shape if that can be predicted."""
    rule = _RULES.get(function)
    if rule is not None:
        with torch._C.DisableTorchFunction():
            result = rule(*args, **kwargs) if all(t.is_meta for t in tensors_in((args, kwargs))) else None
        if result is not None:
            return result
    return function(*args, **kwargs)


def _like(x: torch.Tensor) -> torch.Tensor:
    if x.is_contiguous():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return torch.empty_like(x)  # on meta decomposed in Python


def _same_shape(input: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor | None:
    return _like(input) if input.is_floating_point() and options.get("out") is None else None


def _combine(input: Any, other: Any, *more: Any, **options: Any) -> torch.Tensor | None:
    """Arithmetic of a floating-point tensor and a number, or a tensor that is stretched to the shape of the first."""
    if more or options or not isinstance(input, torch.Tensor):
        return None
    fits = input.is_floating_point() and input.is_contiguous()
    if isinstance(other, torch.Tensor):
        fits &= other.dtype == input.dtype and other.dim() <= input.dim() and other.is_contiguous()
        sizes = zip(reversed(other.shape), reversed(input.shape), strict=False)
        fits &= all(size in (1, full) for size, full in sizes)
    else:
        fits &= type(other) in (int, float)
    return _like(input) if fits else None


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    statistics = [t for t in (running_mean, running_var) if t is not None]
    if input.dim() < 2 or any(t is not None and t.shape != input.shape[1:2] for t in (*statistics, weight, bias)):
        return None
    if input.numel() <= input.shape[1] if training else len(statistics) < 2:
        return None
    return _like(input)


def _layer_norm(input: torch.Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> torch.Tensor | None:
    return _like(input) if tuple(input.shape[-len(normalized_shape) :]) == tuple(normalized_shape) else None


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    fits = input.dim() > 1 and input.shape[1] % num_groups == 0 and input.numel() > num_groups
    return _like(input) if fits and all(t is None or t.shape == input.shape[1:2] for t in (weight, bias)) else None


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
    F.layer_norm: _layer_norm,
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
