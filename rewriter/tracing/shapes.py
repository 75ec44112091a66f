"""Output shapes of common operations without running them: on meta, batch norm alone costs more than everything else.

Nothing is predicted for inputs that do not fit, so that the operation raises its own error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from rewriter.tracing.containers import tensors_in
from rewriter.tracing.kinds import Kind, forward_owner
from rewriter.tracing.shape_rules import RULES, like

_PLAIN_CONVS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
_PLAIN_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def predict_module(module: nn.Module, kind: Kind, x: torch.Tensor) -> torch.Tensor | None:
    """What ``module(x)`` would return, as an empty tensor; None if the module has to be run to find out."""
    if not any(base.__module__.startswith("torch.nn.modules.") for base in forward_owner(module).__mro__[:-2]):
        return None  # the layer's forward is overridden
    if kind is Kind.ACTIVATION and not isinstance(module, nn.GLU):
        return x if getattr(module, "inplace", False) else like(x)
    if kind is Kind.DROPOUT:
        return x if getattr(module, "inplace", False) and module.training else like(x)
    if kind is Kind.NORM:
        fits = not isinstance(module, _NormBase) or (x.dim() > 2 and x.shape[1] == module.num_features)
        return like(x) if fits and isinstance(module, _PLAIN_NORMS) else None
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        fits = x.dim() > 0 and x.shape[-1] == module.in_features
        return x.new_empty((*x.shape[:-1], module.out_features)) if fits else None
    if isinstance(module, _ConvNd) and type(module).forward in _PLAIN_CONVS:
        return _convolve(module, x)
    return None


class PredictedCalls(TorchFunctionMode):
    """While active, functions on meta tensors are not run if their result can be predicted."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call(func, args, kwargs or {})


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``function(*args, **kwargs)``, or on meta tensors return an empty result of the predicted shape."""
    rule = RULES.get(function)
    if rule is not None:
        with torch._C.DisableTorchFunction():
            result = rule(*args, **kwargs) if all(t.is_meta for t in tensors_in((args, kwargs))) else None
        if result is not None:
            return result
    return function(*args, **kwargs)


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
