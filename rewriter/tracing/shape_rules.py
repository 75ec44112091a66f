"""What functions return on meta tensors, as empty tensors; None if inputs do not fit or the result is not predicted.

Arithmetic, activations, norms, resizing, sampling and concatenation: torch infers their shapes in Python, which takes
up to a thousand times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F


def like(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape, strides and type."""
    if x.is_contiguous():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return torch.empty_like(x)  # decomposed in Python on meta


def _same_shape(input: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor | None:
    return like(input) if input.is_floating_point() and options.get("out") is None else None


def _combine(input: Any, other: Any, *more: Any, **options: Any) -> torch.Tensor | None:
    """Arithmetic on a floating-point tensor and a number, or a tensor that broadcasts to its shape."""
    if more or options or not isinstance(input, torch.Tensor):
        return None
    fits = input.is_floating_point() and input.is_contiguous()
    if isinstance(other, torch.Tensor):
        fits &= other.dtype == input.dtype and other.dim() <= input.dim() and other.is_contiguous()
        sizes = zip(reversed(other.shape), reversed(input.shape), strict=False)
        fits &= all(size in (1, full) for size, full in sizes)
    else:
        fits &= type(other) in (int, float)
    return like(input) if fits else None


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
    return like(input)


def _layer_norm(input: torch.Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> torch.Tensor | None:
    return like(input) if tuple(input.shape[-len(normalized_shape) :]) == tuple(normalized_shape) else None


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    fits = input.dim() > 1 and input.shape[1] % num_groups == 0 and input.numel() > num_groups
    return like(input) if fits and all(t is None or t.shape == input.shape[1:2] for t in (weight, bias)) else None


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


def _activate(input: torch.Tensor, *args: Any, inplace: bool = False, **options: Any) -> torch.Tensor | None:
    """Shape- and type-preserving functions; other arguments are numbers, and the last may be ``inplace``."""
    plain = all(type(value) in (int, float) or value is False for value in (*args, *options.values()))
    return like(input) if input.is_floating_point() and plain and not inplace else None


def _softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None, **options: Any
) -> torch.Tensor | None:
    fits = dim is not None and dtype is None and not options and -input.dim() <= dim < input.dim()
    return like(input) if fits and input.is_floating_point() and input.is_contiguous() else None


def _instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    given = [t for t in (running_mean, running_var, weight, bias) if t is not None]
    fits = input.dim() > 2 and input.is_contiguous() and math.prod(input.shape[2:]) > 1 and use_input_stats
    return like(input) if fits and all(t.shape == input.shape[1:2] for t in given) else None


def _rms_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor | None:
    fits = tuple(input.shape[-len(normalized_shape) :]) == tuple(normalized_shape)
    fits &= weight is None or (tuple(weight.shape) == tuple(normalized_shape) and weight.dtype == input.dtype)
    return like(input) if fits and input.is_contiguous() else None


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    fits = input.dim() > 1 and weight.dim() == 2 and input.shape[-1] == weight.shape[1] and input.dtype == weight.dtype
    fits &= bias is None or (bias.shape == weight.shape[:1] and bias.dtype == input.dtype)
    return input.new_empty((*input.shape[:-1], weight.shape[0])) if fits else None


def _concatenate(tensors: Sequence[torch.Tensor], dim: int = 0, **options: Any) -> torch.Tensor | None:
    if options or isinstance(tensors, torch.Tensor) or not tensors or type(dim) is not int:
        return None
    first, rank = tensors[0], tensors[0].dim()
    alike = all(t.dtype == first.dtype and t.dim() == rank and t.is_contiguous() and t.numel() for t in tensors)
    if not alike or not -rank <= dim < rank:
        return None
    shapes = [list(t.shape) for t in tensors]
    joined = sum(shape.pop(dim) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        return None
    shapes[0].insert(dim % rank, joined)
    return first.new_empty(shapes[0])


_MODES = {
    3: ("nearest", "nearest-exact", "area", "linear"),
    4: ("nearest", "nearest-exact", "area", "bilinear", "bicubic"),
    5: ("nearest", "nearest-exact", "area", "trilinear"),
}
"""Supported resizing modes, by the tensor's number of dimensions."""


def _interpolate(
    input: torch.Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> torch.Tensor | None:
    spatial = list(input.shape[2:])
    fits = mode in _MODES.get(input.dim(), ()) and input.is_floating_point() and input.is_contiguous()
    fits &= align_corners is None or "linear" in mode or mode == "bicubic"
    fits &= not antialias or mode in ("bilinear", "bicubic")
    if not fits or (size is None) == (scale_factor is None) or (recompute_scale_factor and size is not None):
        return None
    given = scale_factor if size is None else size
    each = list(given) if isinstance(given, (list, tuple)) else [given] * len(spatial)
    wanted = (int, float) if size is None else (int,)
    if len(each) != len(spatial) or any(type(value) not in wanted for value in each):
        return None
    if size is None:
        each = [math.floor(float(length) * factor) for length, factor in zip(spatial, each, strict=True)]
    return input.new_empty((*input.shape[:2], *each)) if min(each) > 0 and input.numel() else None


def _upsample(
    input: torch.Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> torch.Tensor | None:
    return _interpolate(input, size, scale_factor, mode, align_corners)


def _sample(
    input: torch.Tensor,
    grid: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> torch.Tensor | None:
    """Sample ``input`` of (N, C, H, W) at ``grid`` of (N, H', W', 2), or the same with three spatial dimensions."""
    rank = input.dim()
    fits = rank == grid.dim() and rank in (4, 5) and grid.shape[0] == input.shape[0] and grid.shape[-1] == rank - 2
    fits &= input.dtype == grid.dtype and input.is_floating_point() and input.is_contiguous() and input.numel() > 0
    fits &= mode in ("bilinear", "nearest") or (mode == "bicubic" and rank == 4)
    fits &= padding_mode in ("zeros", "border", "reflection")
    return input.new_empty((*input.shape[:2], *grid.shape[1:-1])) if fits else None


RULES: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    F.scaled_dot_product_attention: _attend,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.rms_norm: _rms_norm,
    F.linear: _linear,
    F.interpolate: _interpolate,
    F.upsample: _upsample,
    F.grid_sample: _sample,
    F.normalize: _same_shape,
    F.gelu: _same_shape,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax, torch.Tensor.softmax), _softmax),
    **dict.fromkeys(
        (
            F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
            F.hardtanh, F.softplus, F.logsigmoid, torch.relu, torch.Tensor.relu, torch.clamp, torch.Tensor.clamp,
        ),
        _activate,
    ),
    **dict.fromkeys(
        (
            torch.add, torch.mul, torch.sub, torch.div, torch.Tensor.add, torch.Tensor.mul, torch.Tensor.sub,
            torch.Tensor.div,
        ),
        _combine,
    ),
}  # fmt: skip
"""Rules by the called function."""
