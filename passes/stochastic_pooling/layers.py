"""Stochastic average pooling as layers, and as behaviours of pooling layers that a model already has.

In evaluation, and with ``keep_prob=1``, each is exactly the pooling it replaces, bit for bit. In training it is the
average of a random subset of each window, drawn for each sample and shared by the channels, times the square root of
the share kept (``scale="sqrt"``, as published) or unscaled (``scale="none"``). Both can be set at any time.
Random numbers come from the device's default generator, as for dropout.

Source: Kim et al., *Stochastic Subsampling With Average Pooling* (arXiv:2409.16630). Theirs: the subset, its average,
the square root, one and two dimensions. Ours: a subset for each local window and adaptive bin, and for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.analysis.windows import per_dim
from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import FORWARD_OF_BASE, NotScripted
from rewriter.passes.stochastic_pooling.options import checked_keep_prob, checked_scale
from rewriter.passes.stochastic_pooling.sampling import bins, pool_regions, pool_sequence, pool_windows, windows
from rewriter.tracing.kinds import Kind


class Sampling(NotScripted):
    """Common base: ``keep_prob`` and ``scale``, checked when they are set.

    Attributes:
        keep_prob: share of the elements of a window that are averaged in training, ``0 < keep_prob <= 1``; of ``L``
            elements ``max(1, round(keep_prob * L))``.
        scale: ``"sqrt"`` multiplies the average by the square root of the share kept, which gives zero-mean,
            uncorrelated elements the variance of the full average; ``"none"`` keeps the mean.
    """

    _rewriter_forward_of_base: Callable[[torch.Tensor], torch.Tensor]
    __jit_unused_properties__: ClassVar[list[str]] = ["keep_prob", "scale", "is_sampling"]

    @property
    def keep_prob(self) -> float:
        return float(self.__dict__.get("keep_prob", 0.5))

    @keep_prob.setter
    def keep_prob(self, value: float) -> None:
        self.__dict__["keep_prob"] = checked_keep_prob(value)

    @property
    def scale(self) -> str:
        return str(self.__dict__.get("scale", "sqrt"))

    @scale.setter
    def scale(self, value: str) -> None:
        self.__dict__["scale"] = checked_scale(value)

    @property
    def is_sampling(self) -> bool:
        """Whether the next forward draws a subset."""
        return self.training and self.keep_prob < 1

    def __prepare_scriptable__(self) -> nn.Module:
        """Keep behaviours on pooling layers scriptable, for evaluation."""
        return self if hasattr(type(self), FORWARD_OF_BASE) else super().__prepare_scriptable__()

    def extra_repr(self) -> str:
        described = f"keep_prob={self.keep_prob:g}, scale={self.scale}"
        before = super().extra_repr()
        return f"{before}, {described}" if before else described


@register_layer("stochastic-pooling/adaptive")
class SamplesBins(Sampling):
    """Behaviour of ``nn.AdaptiveAvgPool1d``, ``2d``, ``3d`` and their subclasses."""

    output_size: Any

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            pool: Pool = super().forward  # type: ignore[misc]
            if not self.is_sampling:
                return pool(input)
            return _adaptive(self, input, _spatial_dims(self), pool, self.output_size)
        if self.training:
            raise RuntimeError("stochastic pooling is scripted for evaluation only: train the model, then script it")
        return self._rewriter_forward_of_base(input)


@register_layer("stochastic-pooling/local")
class SamplesWindows(Sampling):
    """Behaviour of ``nn.AvgPool1d``, ``2d``, ``3d`` and their subclasses with non-overlapping windows."""

    kernel_size: Any
    stride: Any
    ceil_mode: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            pool: Pool = super().forward  # type: ignore[misc]
            if not self.is_sampling:
                return pool(input)
            return _local(self, input, _spatial_dims(self), pool, self.kernel_size, self.stride, 0, self.ceil_mode)
        if self.training:
            raise RuntimeError("stochastic pooling is scripted for evaluation only: train the model, then script it")
        return self._rewriter_forward_of_base(input)


class StochasticAvgPool1d(SamplesWindows, nn.AvgPool1d):
    """Stochastic average pooling of sequences: ``(N, C, L)`` to ``(N, C, L // kernel_size)``.

    As published if ``keep_prob * kernel_size`` is a whole number: a random subset of the whole sequence in shorter
    windows. Otherwise a subset of each window.

    Args:
        kernel_size: elements of one window; windows are adjacent.
        keep_prob, scale: see :class:`Sampling`.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(self, kernel_size: int, *, keep_prob: float = 0.5, scale: str = "sqrt") -> None:
        super().__init__(_checked_sides(kernel_size))
        self.keep_prob, self.scale = keep_prob, scale


class StochasticAvgPool2d(SamplesWindows, nn.AvgPool2d):
    """Stochastic average pooling of maps: ``(N, C, H, W)`` to ``(N, C, H // kernel_size, W // kernel_size)``.

    Args:
        kernel_size: side of the window, or ``(height, width)``; windows are adjacent. None pools the whole map, to
            ``(N, C, 1, 1)``, in place of ``nn.AdaptiveAvgPool2d(1)`` before a classifier.
        keep_prob, scale: see :class:`Sampling`.

    Raises:
        ValueError: ``keep_prob`` or ``scale`` is not as described.
    """

    def __init__(
        self, kernel_size: int | tuple[int, int] | None = None, *, keep_prob: float = 0.5, scale: str = "sqrt"
    ) -> None:
        super().__init__(None if kernel_size is None else _checked_sides(kernel_size))  # type: ignore[arg-type]
        self.keep_prob, self.scale = keep_prob, scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.kernel_size is not None:
            return super().forward(input)
        if not self.is_sampling:
            return F.adaptive_avg_pool2d(input, 1)
        return _adaptive(self, input, 2, lambda x: F.adaptive_avg_pool2d(x, 1), 1)


class StochasticAdaptiveAvgPool1d(SamplesBins, nn.AdaptiveAvgPool1d):
    """Stochastic average pooling to a fixed size: ``(N, C, L)`` to ``(N, C, output_size)``.

    Args:
        output_size: number of bins.
        keep_prob, scale: see :class:`Sampling`; a subset is drawn for each bin.

    Raises:
        ValueError: ``keep_prob`` or ``scale`` is not as described.
    """

    def __init__(self, output_size: int, *, keep_prob: float = 0.5, scale: str = "sqrt") -> None:
        super().__init__(output_size)
        self.keep_prob, self.scale = keep_prob, scale


class StochasticAdaptiveAvgPool2d(SamplesBins, nn.AdaptiveAvgPool2d):
    """Stochastic average pooling to a fixed size: ``(N, C, H, W)`` to ``(N, C, *output_size)``, as in pyramid pooling.

    Args:
        output_size: side of the output, or ``(height, width)``; None in it keeps the input size.
        keep_prob, scale: see :class:`Sampling`; a subset is drawn for each bin.

    Raises:
        ValueError: ``keep_prob`` or ``scale`` is not as described.
    """

    def __init__(
        self, output_size: int | tuple[int | None, int | None], *, keep_prob: float = 0.5, scale: str = "sqrt"
    ) -> None:
        super().__init__(output_size)
        self.keep_prob, self.scale = keep_prob, scale


class StochasticMean(Sampling):
    """The mean over a random subset of tokens or positions: ``(N, L, C)`` to ``(N, C)`` for ``dim=1``.

    Args:
        dim: the dimensions to average over; not the first, which is the batch.
        keepdim: keep them, with size 1.
        keep_prob, scale: see :class:`Sampling`.

    Raises:
        ValueError: ``keep_prob`` or ``scale`` is not as described.
    """

    def __init__(
        self, dim: int | tuple[int, ...], *, keepdim: bool = False, keep_prob: float = 0.5, scale: str = "sqrt"
    ) -> None:
        super().__init__()
        self.dim, self.keepdim = dim, keepdim
        self.keep_prob, self.scale = keep_prob, scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        def pool(x: torch.Tensor) -> torch.Tensor:
            return x.mean(self.dim, self.keepdim)

        return _mean(self, input, self.dim, pool) if self.is_sampling else pool(input)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, keepdim={self.keepdim}, {super().extra_repr()}"


@register_layer("stochastic-pooling/function")
class StochasticFunction(Sampling):
    """Stochastic form of a pooling function, with the same arguments and return value.

    Args:
        function: a name of :attr:`FUNCTIONS`.
        keep_prob, scale: see :class:`Sampling`.

    Raises:
        ValueError: an argument is not as described.
    """

    FUNCTIONS: ClassVar[dict[str, Callable[..., torch.Tensor]]] = {
        name: getattr(F, name)
        for name in (
            *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        )
    } | {"mean": torch.mean}

    def __init__(self, function: str, *, keep_prob: float = 0.5, scale: str = "sqrt") -> None:
        super().__init__()
        if function not in self.FUNCTIONS:
            raise ValueError(f"function: expected one of {', '.join(self.FUNCTIONS)}, found {function!r}")
        self.function = function
        self.keep_prob, self.scale = keep_prob, scale

    @property
    def operation_kind(self) -> Kind:
        return Kind.MEAN if self.function == "mean" else Kind.AVG_POOL

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        function = self.FUNCTIONS[self.function]

        def pool(x: torch.Tensor) -> torch.Tensor:
            return function(x, *args, **kwargs)

        if not self.is_sampling:
            return pool(input)
        if self.function == "mean":
            return _mean(self, input, args[0] if args else kwargs.get("dim", kwargs.get("axis")), pool)
        average = _adaptive if self.function.startswith("adaptive") else _local
        return average(self, input, int(self.function[-2]), pool, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.function}, {super().extra_repr()}"


@register_layer("stochastic-pooling/positions")
class SampledPositions(Sampling):
    """Acts before a global average pooling in code that is not edited (einops), so that it averages a random subset.

    In training all but a random subset of positions is set to zero, and the rest is scaled up to compensate for the
    average over all positions; in evaluation the input is returned unchanged.

    Args:
        dims: the dimensions that the pooling averages over; not the first, which is the batch.
        keep_prob, scale: see :class:`Sampling`.

    Raises:
        ValueError: ``keep_prob`` or ``scale`` is not as described.
    """

    operation_kind = Kind.IDENTITY

    def __init__(self, dims: Sequence[int], *, keep_prob: float = 0.5, scale: str = "sqrt") -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.keep_prob, self.scale = keep_prob, scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _mean(self, input, self.dims, lambda masked: masked) if self.is_sampling else input

    def extra_repr(self) -> str:
        return f"dims={self.dims}, {super().extra_repr()}"


def _checked_sides(kernel_size: Any) -> Any:
    sides = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,)
    if not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"kernel_size: expected positive ints, found {kernel_size!r}; keep_prob is given by its name")
    return kernel_size


Pool = Callable[[torch.Tensor], torch.Tensor]


def _mean(sampling: Sampling, x: torch.Tensor, dim: Any, pool: Pool) -> torch.Tensor:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    window = [x.shape[d] for d in dims]
    return pool_windows(x, pool, dims, window, sampling.keep_prob, sampling.scale)


def _local(
    sampling: Sampling, x: torch.Tensor, spatial_dims: int, pool: Pool, *given: Any, **named: Any
) -> torch.Tensor:
    """Pool local windows; the arguments after ``pool`` are those of ``avg_pool2d``."""
    arguments = dict(zip(("kernel_size", "stride", "padding", "ceil_mode"), given, strict=False)) | named
    window = per_dim(arguments["kernel_size"], spatial_dims)
    stride = per_dim(arguments.get("stride") or window, spatial_dims)
    ceil_mode = bool(arguments.get("ceil_mode", False))
    sizes = x.shape[-spatial_dims:]
    whole = [
        size == length or (length == step and not (ceil_mode and size % length))
        for size, length, step in zip(sizes, window, stride, strict=True)
    ]
    if not all(whole):
        regions = [windows(*edges, ceil_mode, x.device) for edges in zip(sizes, window, stride, strict=True)]
        return pool_regions(x, regions, sampling.keep_prob, sampling.scale)
    if spatial_dims == 1 and (sampling.keep_prob * window[0]).is_integer():
        return pool_sequence(x, window[0], sampling.keep_prob, sampling.scale)
    return _windows(sampling, x, window, pool)


def _adaptive(sampling: Sampling, x: torch.Tensor, spatial_dims: int, pool: Pool, output_size: Any) -> torch.Tensor:
    sizes = x.shape[-spatial_dims:]
    counts = [s if count is None else count for count, s in zip(per_dim(output_size, spatial_dims), sizes, strict=True)]
    if all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):
        return _windows(sampling, x, [size // count for size, count in zip(sizes, counts, strict=True)], pool)
    regions = [bins(size, count, x.device) for size, count in zip(sizes, counts, strict=True)]
    return pool_regions(x, regions, sampling.keep_prob, sampling.scale)


def _windows(sampling: Sampling, x: torch.Tensor, window: Sequence[int], pool: Pool) -> torch.Tensor:
    spatial_dims = len(window)
    dims, batched = range(-spatial_dims, 0), x.dim() == spatial_dims + 2
    return pool_windows(x, pool, dims, window, sampling.keep_prob, sampling.scale, batched=batched)


def _spatial_dims(module: nn.Module) -> int:
    """Return 1, 2 or 3, by the class of the pooling layer."""
    classes = ((nn.AdaptiveAvgPool1d, nn.AvgPool1d), (nn.AdaptiveAvgPool2d, nn.AvgPool2d))
    return next((number for number, kinds in enumerate(classes, 1) if isinstance(module, kinds)), 3)
