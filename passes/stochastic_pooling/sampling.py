"""Average pooling over a random subset of the elements of each window.

Keeping a subset of ``k`` of ``L`` elements and averaging it is the same as zeroing the others, averaging all ``L`` and
multiplying by ``L / k``. So if windows do not overlap, the existing pooling averages a masked map: its layout, dtype,
keepdim and flattening are unchanged, and gradients reach the kept elements only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def kept_count(elements: int, keep_prob: float) -> int:
    """Return how many of ``elements`` are kept: the nearest whole number, at least one."""
    return max(1, round(keep_prob * elements))


def pool_windows(
    x: torch.Tensor,
    pool: Callable[[torch.Tensor], torch.Tensor],
    dims: Sequence[int],
    window: Sequence[int],
    keep_prob: float,
    scale: str,
    *,
    batched: bool = True,
) -> torch.Tensor:
    """Return ``pool(x)`` over a random subset of each window.

    Args:
        x: the map; one subset for each window, shared by the dimensions that are not pooled.
        pool: averages adjacent, non-overlapping windows, starting at the first element.
        dims: the pooled dimensions.
        window: the size of a window along each of ``dims``.
        keep_prob: share of the elements of a window that are kept.
        scale: one of :data:`SCALES`.
        batched: whether the first dimension is the batch; each sample then has its own subset.

    Raises:
        ValueError: there is nothing to average.
    """
    elements = math.prod(window)
    if elements == 0:
        raise ValueError(f"expected a map with at least one position to average, found shape {tuple(x.shape)}")
    kept = kept_count(elements, keep_prob)
    if kept == elements:
        return pool(x)
    share = kept / elements
    factor = 1 / share if scale == "none" else 1 / math.sqrt(share)
    return pool(torch.where(_kept(x, dims, window, kept, batched), x, 0)) * factor


def _kept(x: torch.Tensor, dims: Sequence[int], window: Sequence[int], kept: int, batched: bool) -> torch.Tensor:
    """Return a mask of the elements averaged, shaped like ``x`` but of size 1 where dimensions share the subset."""
    pooled = sorted(zip((dim % x.dim() for dim in dims), window, strict=True))
    samples = x.shape[0] if batched else 1
    lengths = [length for _, length in pooled]
    counts = [x.shape[dim] // length for dim, length in pooled]
    ranks = torch.rand(samples, *counts, math.prod(lengths), device=x.device).argsort(-1)
    side_by_side = [axis for index in range(1, 1 + len(pooled)) for axis in (index, index + len(pooled))]
    windows = (ranks < kept).view(samples, *counts, *lengths).permute(0, *side_by_side)
    covered = [count * length for count, length in zip(counts, lengths, strict=True)]
    beyond = [end for (dim, _), size in zip(pooled, covered, strict=True) for end in (x.shape[dim] - size, 0)]
    averaged = F.pad(windows.reshape(samples, *covered), beyond[::-1])  # elements outside all windows are not averaged
    shape = [samples if batched else 1] + [1] * (x.dim() - 1)
    for dim, _ in pooled:
        shape[dim] = x.shape[dim]
    return averaged.view(shape)


def pool_regions(x: torch.Tensor, regions: Sequence[torch.Tensor], keep_prob: float, scale: str) -> torch.Tensor:
    """Average-pool over a random subset of each region; regions may differ in size and overlap.

    Args:
        x: ``(N, C, …)`` or ``(C, …)`` with as many further dimensions as ``regions``.
        regions: for each of these dimensions, which positions each output averages, ``(outputs, positions)``.
        keep_prob: share of the elements of a region that are kept; the factor of ``scale`` is computed per region.
        scale: one of :data:`SCALES`.

    Returns:
        ``(N, C, …)`` or ``(C, …)`` with as many elements along each dimension as it has regions.

    Raises:
        ValueError: there is nothing to average.
    """
    inside = functools.reduce(
        lambda a, b: (a[:, None, :, None] & b[None, :, None, :]).flatten(2).flatten(0, 1), regions
    )
    if 0 in inside.shape:
        raise ValueError(f"expected a map with at least one position to average, found shape {tuple(x.shape)}")
    elements = inside.sum(-1, dtype=torch.float32)
    kept = (keep_prob * elements).round().clamp(min=1)
    factor = torch.ones_like(kept) if scale == "none" else (kept / elements).sqrt()
    shape = (*x.shape[: -len(regions)], *(len(region) for region in regions))
    values = x.flatten(x.dim() - len(regions))
    samples = values.shape[0] if values.dim() == 3 else 1
    keys = torch.rand(samples, *inside.shape, device=x.device).masked_fill(~inside, 2.0)
    chosen = torch.arange(inside.shape[1], device=x.device) < kept[:, None]
    weights = torch.zeros_like(keys).scatter(-1, keys.argsort(-1), (chosen * (factor / kept)[:, None]).expand_as(keys))
    weights = weights.to(values.dtype).mT
    if not torch.amp.is_autocast_available(x.device.type):  # meta
        return torch.matmul(values, weights).reshape(shape)
    with torch.autocast(x.device.type, enabled=False):
        return torch.matmul(values, weights).reshape(shape)


def bins(size: int, count: int, device: torch.device) -> torch.Tensor:
    """Return which of ``size`` positions each of ``count`` adaptive bins averages, ``(count, size)``."""
    position, number = torch.arange(size, device=device), torch.arange(count, device=device)[:, None]
    return (position >= number * size // count) & (position < -(-(number + 1) * size // count))


def windows(size: int, length: int, stride: int, ceil_mode: bool, device: torch.device) -> torch.Tensor:
    """Return which of ``size`` positions each window covers, ``(windows, size)``; ``ceil_mode`` adds partial ones."""
    count = max(0, (-(-(size - length) // stride) if ceil_mode else (size - length) // stride) + 1)
    count -= (count - 1) * stride >= size  # a window that starts beyond the end is dropped
    position, start = torch.arange(size, device=device), stride * torch.arange(count, device=device)[:, None]
    return (position >= start) & (position < start + length)


def pool_sequence(x: torch.Tensor, window: int, keep_prob: float, scale: str) -> torch.Tensor:
    """Pool a random subset of the whole sequence, order kept, in shorter windows: the published form in one dimension.

    Args:
        x: ``(N, C, L)`` or ``(C, L)``.
        window: elements that one output averages; ``keep_prob * window`` must be a whole number.
        keep_prob: share of the sequence that is kept.
        scale: one of :data:`SCALES`.

    Returns:
        ``(N, C, L // window)`` or ``(C, L // window)``.
    """
    length = x.shape[-1] // window * window
    shorter = round(keep_prob * window)
    kept = length // window * shorter
    samples = x.shape[0] if x.dim() == 3 else 1
    chosen = torch.rand(samples, length, device=x.device).argsort(-1)[:, :kept].sort(-1).values
    index = chosen[:, None, :].expand(-1, x.shape[-2], -1) if x.dim() == 3 else chosen.expand(x.shape[-2], -1)
    factor = 1.0 if scale == "none" else math.sqrt(shorter / window)
    return F.avg_pool1d(x.gather(-1, index), shorter) * factor
