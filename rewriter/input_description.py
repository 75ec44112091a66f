"""The shapes and types of a model's arguments as plain data, and arguments made from it again.

A plan and a rewritten model remember what they were planned on without keeping the user's images: what a later verb
needs of them is their structure. Values are made up: noise for floating-point tensors, zeros for whole numbers (a valid
index and timestep everywhere), True for masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewriter.inputs import Inputs

_PLAIN = (type(None), bool, int, float, str)
_MODEL_TYPE = "of the model"


def describe_inputs(inputs: Inputs, model: nn.Module) -> dict[str, Any] | None:
    """``inputs`` as JSON-ready data; None if they hold something that is neither tensor, container nor plain value."""
    try:
        kwargs = {name: _described(value, model) for name, value in inputs.kwargs.items()}
        return {"args": [_described(value, model) for value in inputs.args], "kwargs": kwargs}
    except _NotPlain:
        return None


def described_inputs(description: Any, model: nn.Module, origin: str) -> Inputs | None:
    """Arguments as they were described, on the model's device; always the same. None if the data is no description.

    Tensors that had the model's floating-point type get the one that it has now.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        args = tuple(_made(value, model, generator) for value in description["args"])
        kwargs = {str(name): _made(value, model, generator) for name, value in description["kwargs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
        return None
    image = args[0] if len(args) == 1 and not kwargs else None
    size = tuple(image.shape[1:]) if isinstance(image, torch.Tensor) and origin != "example_inputs" else None
    return Inputs(args, kwargs, origin, size if size is not None and len(size) == 3 else None)


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


def _made(data: Any, model: nn.Module, generator: torch.Generator) -> Any:
    ((kind, content),) = [(key, item) for key, item in data.items() if key != "dtype"]
    if kind == "tensor":
        return _made_tensor(content, data["dtype"], model, generator)
    if kind in ("list", "tuple"):
        items = [_made(item, model, generator) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {str(key): _made(item, model, generator) for key, item in content.items()}
    if kind == "value" and type(content) in _PLAIN:
        return content
    raise ValueError(f"not a description of an argument: {data!r}")


def _made_tensor(shape: list[int], dtype: str, model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    reference = _reference(model)
    found = reference.dtype if dtype == _MODEL_TYPE else getattr(torch, dtype)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"not a type of tensors: {dtype!r}")
    if reference.device.type == "meta":
        return torch.empty(shape, dtype=found, device="meta")
    if found.is_floating_point:
        return torch.randn(shape, generator=generator, device="cpu").to(reference.device, found)
    return torch.full(shape, found is torch.bool, dtype=found, device=reference.device)


def _reference(model: nn.Module) -> torch.Tensor:
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
