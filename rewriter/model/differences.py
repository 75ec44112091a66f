"""How two results of models differ: in their structure, and by how much in their values."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from rewriter.model.contents import Content, contents


def differences(first: Any, second: Any) -> list[str]:
    """Paths at which two objects are not equal bit for bit; or how their structures differ."""
    old, new = list(contents(first)), list(contents(second))
    if built_otherwise := other_structure(old, new):
        return [built_otherwise]
    return [a.path or "value" for a, b in zip(old, new, strict=True) if difference(a.value, b.value) > 0]


def largest_difference(first: Sequence[Content], second: Sequence[Content]) -> tuple[float, str]:
    """The largest difference of two outputs of one structure, and where; 0 only if all are equal bit for bit."""
    worst, where = 0.0, ""
    for a, b in zip(first, second, strict=True):
        found = difference(a.value, b.value)
        if found > worst:
            worst, where = found, a.path
    return worst, where


def difference(first: Any, second: Any) -> float:
    """How much two values differ: for tensors the largest |difference|, 0 only if they are equal bit for bit.

    NaN equals NaN, and an infinity equals itself. The result is infinite if only one number is finite, if shapes
    differ, and for unequal numbers and strings; it is 0 for what has no values: meta tensors, and other objects.
    """
    if isinstance(first, (str, numbers.Number)):
        return 0.0 if _is_same(first, second) else math.inf
    if not isinstance(first, torch.Tensor) or first is second or first.is_meta:
        return 0.0
    a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (dense(first), dense(second)))
    if a.shape != b.shape:
        return math.inf
    if torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return math.inf
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0).max())


ROUNDING, ROUNDING_OF_16_BITS = 1e-5, 0.05
"""How much of its largest value an output may change by another order of sums; also by TF32, in the second case."""


def rounding_of(tensor: torch.Tensor) -> float:
    """How far a tensor may be from another one that differs in rounding only."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return 0.0
    short = tensor.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    share = ROUNDING_OF_16_BITS if short or torch.finfo(tensor.dtype).bits < 32 else ROUNDING
    return share * float(tensor.double().abs().max())


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a sparse, quantized or nested tensor."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def other_structure(before: Sequence[Content], after: Sequence[Content]) -> str:
    """Describe where the structures of two outputs differ; empty if they do not."""
    old, new = ([(content.path, content.kind) for content in output] for output in (before, after))
    if old == new:
        return ""
    if len(old) != len(new):
        return f"{len(old)} values → {len(new)} values"
    path, kind, other_path, other = next((*a, *b) for a, b in zip(old, new, strict=True) if a != b)
    return f"output{path}: {kind} → {other}" if path == other_path else f"output{path} → output{other_path}"


def _is_same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second or (first != first and second != second))
    except Exception:  # a number that refuses to be compared, such as a signalling NaN of Decimal
        return repr(first) == repr(second)
