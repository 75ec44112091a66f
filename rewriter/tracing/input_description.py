"""Describe the shapes and types of a model's arguments as plain data, and build arguments from it.

Plans and rewritten models remember what they were planned on without keeping the user's images, since later functions
only need the structure. Values are synthetic: noise for floating-point tensors, zeros for integers (always a valid
index and timestep), True for masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewriter.tracing.inputs import Inputs, Origin

_PLAIN = (type(None), bool, int, float, str)
_MODEL_TYPE = "of the model"


def describe_inputs(inputs: Inputs, model: nn.Module) -> dict[str, Any] | None:
    """``inputs`` as JSON-ready data; None if they contain anything but tensors, containers and plain values."""
    try:
        kwargs = {name: _described(value, model) for name, value in inputs.kwargs.items()}
        return {"args": [_described(value, model) for value in inputs.args], "kwargs": kwargs}
    except _NotPlain:
        return None


def described_inputs(description: Any, model: nn.Module, origin: str, *, meta: bool = False) -> Inputs | None:
    """Build described arguments on the model's device, always the same ones. None if the data is not a description.

    ``origin`` is worded as in :class:`Origin`. With ``meta`` they have no values. Tensors that had the model's
    floating-point type get its present one.
    """
    reference = _reference(model)
    making = _Making(reference.dtype, torch.device("meta") if meta else reference.device)
    try:
        known = Origin(origin)
        args = tuple(making.of(value) for value in description["args"])
        kwargs = {str(name): making.of(value) for name, value in description["kwargs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
        return None
    image = args[0] if len(args) == 1 and not kwargs else None
    size = tuple(image.shape[1:]) if isinstance(image, torch.Tensor) and known is not Origin.EXAMPLE_INPUTS else None
    return Inputs(args, kwargs, known, size if size is not None and len(size) == 3 else None)


class _NotPlain(Exception):
    """A value that cannot be described."""


def _described(value: Any, model: nn.Module) -> Any:
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided:
            raise _NotPlain
        own = value.is_floating_point() and value.dtype == _reference(model).dtype
        return {"tensor": list(value.shape), "dtype": _MODEL_TYPE if own else str(value.dtype).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(item, model) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(item, model) for key, item in value.items()}}
    if type(value) in _PLAIN:
        return {"value": value}
    raise _NotPlain


class _Making:
    """Builds values from their descriptions."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator().manual_seed(0)

    def of(self, data: Any) -> Any:
        ((kind, content),) = [(key, item) for key, item in data.items() if key != "dtype"]
        if kind == "tensor":
            return self._tensor(content, data["dtype"])
        if kind in ("list", "tuple"):
            items = [self.of(item) for item in content]
            return items if kind == "list" else tuple(items)
        if kind == "dict":
            return {str(key): self.of(item) for key, item in content.items()}
        if kind == "value" and type(content) in _PLAIN:
            return content
        raise ValueError(f"not a description of an argument: {data!r}")

    def _tensor(self, shape: list[int], name: str) -> torch.Tensor:
        dtype = self._dtype if name == _MODEL_TYPE else getattr(torch, name)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"not a type of tensors: {name!r}")
        if self._device.type == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        if dtype.is_floating_point:
            return torch.randn(shape, generator=self._generator, device="cpu").to(self._device, dtype)
        return torch.full(shape, dtype is torch.bool, dtype=dtype, device=self._device)


def _reference(model: nn.Module) -> torch.Tensor:
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
