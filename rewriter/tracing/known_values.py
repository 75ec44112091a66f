"""Known values in a run on meta tensors: those of small tensors that do not depend on the input.

A detector keeps its strides in a tensor and reads them as numbers, and stores the sizes of its levels in another. Meta
tensors have no values, so such a model would have to be run on real tensors. Instead, what the model holds, and what is
computed from that and from numbers alone, is computed alongside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rewriter.tracing import shapes
from rewriter.tracing.containers import map_tensors, tensors_in
from rewriter.tracing.kinds import function_name, is_in_place

_MOST_ELEMENTS = 1024

_READERS = frozenset(
    {
        torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__,
        torch.Tensor.__index__, torch.Tensor.numpy, torch.Tensor.is_nonzero, torch.is_nonzero, torch.equal,
        torch.Tensor.equal, torch.allclose, torch.Tensor.__contains__,
    }
)  # fmt: skip
"""Functions that give the values of a tensor to Python."""

_MADE_OF_NUMBERS = frozenset({"tensor", "as_tensor", "arange", "linspace", "full", "zeros", "ones", "eye"})
"""Functions that create a tensor from numbers, deterministically."""


class KnownValues:
    """The known values of the meta tensors of one run.

    Args:
        on_meta: whether the run is on meta tensors; on real tensors operations simply run.
    """

    def __init__(self, *, on_meta: bool) -> None:
        self.on_meta = on_meta
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the first keeps the id from being reused

    def noting(self, twin: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """``twin``, but recording the values of the meta tensors that it makes."""

        def noted(tensor: torch.Tensor) -> torch.Tensor:
            made = twin(tensor)
            self.note(made, tensor)
            return made

        return noted if self.on_meta else twin

    def note(self, twin: torch.Tensor, tensor: torch.Tensor) -> None:
        """Record that ``twin`` stands for ``tensor``, which is only read; not for parameters, since those change."""
        plain = type(tensor) is torch.Tensor and not isinstance(tensor, nn.Parameter) and not tensor.is_meta
        if plain and tensor.layout is torch.strided and tensor.numel() <= _MOST_ELEMENTS:
            self._values[id(twin)] = twin, tensor.detach()

    def forget(self, identity: int) -> None:
        """Forget the values of the tensor with this ``id``, because it was written to."""
        self._values.pop(identity, None)

    def clear(self) -> None:
        self._values.clear()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``function(*args, **kwargs)``; if it reads numbers from meta tensors with known values, return those."""
        if not self.on_meta:
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            tensors = list(tensors_in((args, kwargs)))
            known = all(id(tensor) in self._values for tensor in tensors)
            if known and function in _READERS:
                return function(*self._real(args), **self._real(kwargs))
        try:
            result = shapes.call(function, args, kwargs)
        except RuntimeError:  # a size or fill value is a tensor
            replaced: list[torch.Tensor] = []
            with torch._C.DisableTorchFunction():
                numbers = self._numbers(args, replaced), self._numbers(kwargs, replaced)
            if not replaced:
                raise
            return shapes.call(function, *numbers)
        if known and (tensors or function_name(function) in _MADE_OF_NUMBERS):
            with torch._C.DisableTorchFunction():
                self._follow(function, args, kwargs, result)
        return result

    def _follow(self, function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """Record the values of a result that was computed from known values."""
        made = list(tensors_in(result))
        few = made and all(tensor.is_meta and tensor.numel() <= _MOST_ELEMENTS for tensor in made)
        if not few or is_in_place(function) or kwargs.get("inplace") or "out" in kwargs:
            return
        with contextlib.suppress(Exception), torch.device("cpu"):
            for twin, value in zip(made, tensors_in(function(*self._real(args), **self._real(kwargs))), strict=True):
                self.note(twin, value)

    def _real(self, value: Any) -> Any:
        """``value`` with its known tensors on the CPU."""
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, (list, tuple, dict)):
            items = [self._real(item) for item in (value.values() if isinstance(value, dict) else value)]
            return dict(zip(value, items, strict=True)) if isinstance(value, dict) else type(value)(items)
        return map_tensors(value, lambda tensor: self._values[id(tensor)][1].to("cpu", copy=True))

    def _numbers(self, value: Any, replaced: list[torch.Tensor]) -> Any:
        """``value`` with numbers for its known zero-dimensional tensors, which are appended to ``replaced``."""
        if isinstance(value, slice):
            return slice(*(self._numbers(item, replaced) for item in (value.start, value.stop, value.step)))
        if isinstance(value, (list, tuple)):
            return type(value)([self._numbers(item, replaced) for item in value])
        if isinstance(value, dict):
            return {key: self._numbers(item, replaced) for key, item in value.items()}
        if isinstance(value, torch.Tensor) and not value.dim() and id(value) in self._values:
            replaced.append(value)
            return self._values[id(value)][1].item()
        return value
