"""Windows that cover pixels unevenly: of convolutions and of poolings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rewriter.analysis.windows import per_dim, pooling_arguments
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Trace

_OWN_DEFAULTS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Window:
    """A window that moves over a map by a stride.

    Attributes:
        what: ``"convolution"`` or ``"pooling"``.
        kernel, stride, padding: sizes, one per spatial dimension.
        ceil: whether a window may begin on the map and end behind it (poolings).
    """

    what: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool = False

    @property
    def pools(self) -> bool:
        return self.what == "pooling"

    @property
    def is_uneven(self) -> bool:
        """Whether some pixels are covered more often than others."""
        return any(kernel % stride for kernel, stride in zip(self.kernel, self.stride, strict=True))

    @property
    def code(self) -> str:
        skips = any(kernel < stride for kernel, stride in zip(self.kernel, self.stride, strict=True))
        return "RW1302" if skips else "RW1301"

    @property
    def padded(self) -> tuple[int, ...]:
        """The kernel with each side padded to a multiple of its stride."""
        return tuple(-(-kernel // stride) * stride for kernel, stride in zip(self.kernel, self.stride, strict=True))

    @property
    def size(self) -> str:
        """Such as ``3x3/2``."""
        return f"{shown(self.kernel)}/{self.stride[0] if len(set(self.stride)) == 1 else shown(self.stride)}"

    def coverage(self) -> str:
        """How many positions read a pixel, by its place within a stride, of the first uneven dimension."""
        kernel, stride = next((k, s) for k, s in zip(self.kernel, self.stride, strict=True) if k % s)
        counts = sorted({len(range(first, kernel, stride)) for first in range(stride)})
        return " or ".join(map(str, counts))

    def positions(self, kernel: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
        """How many positions a ``kernel`` with this stride and padding has on a map of this size."""
        found = []
        for k, s, p, length in zip(kernel, self.stride, self.padding, size, strict=True):
            room = length + 2 * p - k
            steps = -(-room // s) if self.ceil else room // s
            if self.ceil and steps * s >= length + p:  # the last window has to begin on the map
                steps -= 1
            found.append(steps + 1)
        return tuple(found)


def shown(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def uneven_windows(trace: Trace) -> Iterator[tuple[fx.Node, Window]]:
    """Every convolution and local pooling whose kernel is no multiple of its stride, in execution order."""
    for node in trace.operations(Kind.CONV, Kind.MAX_POOL, Kind.AVG_POOL):
        window = _convolution(trace, node) if facts(node)["kind"] is Kind.CONV else _pooling(trace, node)
        if window is not None and window.is_uneven:
            yield node, window


def _convolution(trace: Trace, node: fx.Node) -> Window | None:
    module = trace.module_of(node)
    if isinstance(module, _ConvTransposeNd):
        return None
    if isinstance(module, _ConvNd):
        padding = module.padding if isinstance(module.padding, tuple) else (0,) * len(module.kernel_size)
        return Window("convolution", tuple(module.kernel_size), tuple(module.stride), tuple(map(int, padding)))
    dims = _OWN_DEFAULTS.get(function_name(node.target)) if node.op == "call_function" else None  # type: ignore[arg-type]
    if dims is None or len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
        return None
    given: dict[str, Any] = dict(zip(("stride", "padding"), node.args[3:5], strict=False)) | dict(node.kwargs)
    stride, padding = given.get("stride", 1), given.get("padding", 0)
    sizes = per_dim(stride, dims), per_dim(0 if isinstance(padding, str) else padding, dims)
    kernel = tuple(facts(node.args[1])["shape"] or ())[2:]
    return Window("convolution", kernel, *sizes) if len(kernel) == dims else None


def _pooling(trace: Trace, node: fx.Node) -> Window | None:
    sources = trace.flow.sources(node)
    size = tuple(facts(sources[0])["shape"] or ())[2:] if len(sources) == 1 else ()
    named = node.op == "call_module" or "pool" in node.name or "boolean_dispatch" in node.name
    arguments = pooling_arguments(node, trace.model) if named and size else {}
    if not arguments:
        return None
    kernel, stride, padding = (per_dim(arguments[name], len(size)) for name in ("kernel_size", "stride", "padding"))
    if not all(isinstance(value, int) for value in (*kernel, *stride, *padding)) or len(kernel) != len(size):
        return None
    if all(side >= length for side, length in zip(kernel, size, strict=True)):  # global
        return None
    return Window("pooling", kernel, stride, padding, bool(arguments["ceil_mode"]))
