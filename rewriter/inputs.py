"""What to run a model on: given by the caller, or read from the model's own configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.errors import InputError

BATCH = 2
"""Batch size of made-up inputs: batch norm in training needs more than one value per channel."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of the model, and where they came from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """The same structure with every tensor changed."""
        return Inputs(map_tensors(self.args, change), map_tensors(self.kwargs, change), self.origin)


def find_inputs(model: nn.Module, example_inputs: Any = None, input_size: Any = None) -> Inputs:
    """Arguments to run ``model`` on, on the model's device and in its floating-point type.

    Args:
        model: the model.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or one list of tensors
            (detection models).
        input_size: an int, ``(H, W)`` or ``(C, H, W)``; never a batch. Read from the model's own configuration if
            neither is given (``pretrained_cfg``, ``default_cfg``, ``config.image_size``).

    Raises:
        InputError: no size was given and the model names none, or the size is not one of the three forms.
    """
    if example_inputs is not None and input_size is not None:
        raise InputError("give example_inputs or input_size, not both")
    if example_inputs is not None:
        return _from_examples(example_inputs)
    if input_size is not None:
        size, origin = _normalise(input_size, _input_channels(model)), "input_size"
    else:
        size, origin = _from_configuration(model)
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(BATCH, *size, generator=generator) if reference.device.type != "meta" else None
    if image is None:
        return Inputs((torch.empty(BATCH, *size, dtype=reference.dtype, device="meta"),), {}, origin)
    return Inputs((image.to(reference.device, reference.dtype),), {}, origin)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` (nested tuples, lists and dicts) with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def _from_examples(example_inputs: Any) -> Inputs:
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, tuple):
        args, kwargs = example_inputs, {}
    elif isinstance(example_inputs, (torch.Tensor, list)):
        args, kwargs = (example_inputs,), {}
    else:
        raise InputError(
            f"example_inputs: expected a tensor, a tuple of arguments, a dict of keyword arguments or a list of "
            f"tensors, found {type(example_inputs).__name__}"
        )
    tensors: list[torch.Tensor] = []
    map_tensors((args, kwargs), lambda t: (tensors.append(t), t)[1])
    if not tensors:
        raise InputError("example_inputs: expected at least one tensor, found none")
    return Inputs(args, kwargs, "example_inputs")


def _normalise(size: Any, channels: int) -> tuple[int, int, int]:
    values = (size, size) if isinstance(size, int) else tuple(size)
    if len(values) == 4:
        raise InputError(f"input_size {values} has four numbers; leave the batch away: (C, H, W)")
    if len(values) not in (2, 3) or not all(isinstance(v, int) and v > 0 for v in values):
        raise InputError(f"input_size: expected an int, (H, W) or (C, H, W) of positive ints, found {size!r}")
    return (channels, *values) if len(values) == 2 else values  # type: ignore[return-value]


def _input_channels(model: nn.Module) -> int:
    """Channels that the first convolution takes."""
    return next((m.in_channels for m in model.modules() if isinstance(m, _ConvNd)), 3)


def _from_configuration(model: nn.Module) -> tuple[tuple[int, int, int], str]:
    channels = _input_channels(model)
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    for name in ("pretrained_cfg", "default_cfg"):
        size = (getattr(model, name, None) or {}).get("input_size")
        if size is not None:
            sides = tuple(built_for) if isinstance(built_for, (tuple, list)) else tuple(size)[-2:]
            return _normalise(sides, channels), f"model.{name}"
    size = getattr(getattr(model, "config", None), "image_size", None)
    if size is not None:
        sides = size if isinstance(size, int) else tuple(size)
        return _normalise(sides, getattr(model.config, "num_channels", channels)), "model.config"  # type: ignore[arg-type, union-attr]
    image_size = getattr(model, "image_size", None)
    if isinstance(image_size, int):
        return _normalise(image_size, channels), "model.image_size"
    raise InputError(
        f"no input size found: {type(model).__name__} has no pretrained_cfg, default_cfg or config.image_size. "
        "Give input_size=224, input_size=(H, W) or example_inputs=."
    )
