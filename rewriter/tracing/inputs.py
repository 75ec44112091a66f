"""What to run a model on: given by the caller, or read from the model's own configuration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.errors import InputError
from rewriter.tracing.input_types import ExampleInputs, InputSize

BATCH = 2
"""Batch size of made-up inputs: batch norm in training needs more than one value per channel."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of the model, where they came from, and the image's ``(C, H, W)`` if they were made up."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str
    image_size: tuple[int, int, int] | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """The same structure with every tensor changed."""
        return replace(self, args=map_tensors(self.args, change), kwargs=map_tensors(self.kwargs, change))


def candidate_inputs(
    model: nn.Module, example_inputs: ExampleInputs | None = None, input_size: InputSize | None = None
) -> list[Inputs]:
    """Arguments to run ``model`` on, on the model's device and in its floating-point type; the likeliest first.

    There are two candidates where the model's configuration and its first convolution disagree on the channels: either
    may be right (a model made with ``in_chans=1``, a stem that rearranges pixels before it convolves them). Without a
    configuration the convolution that was made first may not be the one that reads the image: then three channels are
    tried as well.

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
        return [_from_examples(example_inputs)]
    if input_size is not None:
        sizes, origin = [_normalise(input_size, channels) for channels in _input_channels(model)], "input_size"
    else:
        sizes, origin = _from_configuration(model)
    return [Inputs((_image(model, size),), {}, origin, size) for size, _ in itertools.groupby(sizes)]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts, however deep; one that holds itself is not entered again."""
    ways, around = [iter((value,))], [0]
    while ways:
        for item in ways[-1]:
            if isinstance(item, torch.Tensor):
                yield item
            elif isinstance(item, (list, tuple, Mapping)) and id(item) not in around:
                ways.append(iter(item.values() if isinstance(item, Mapping) else item))
                around.append(id(item))
                break
        else:
            ways.pop()
            around.pop()


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
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, tuple):
        args = example_inputs
    elif isinstance(example_inputs, (torch.Tensor, list)):
        args = (example_inputs,)
    else:
        raise InputError(
            f"example_inputs: expected a tensor, a tuple of arguments, a dict of keyword arguments or a list of "
            f"tensors, found {type(example_inputs).__name__}"
        )
    if not any(True for _ in tensors_in((args, kwargs))):
        raise InputError("example_inputs: expected at least one tensor, found none")
    return Inputs(args, kwargs, "example_inputs")


def _normalise(size: Any, channels: int) -> tuple[int, int, int]:
    values = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(values) == 4:
        raise InputError(f"input_size {values} has four numbers; leave the batch away: (C, H, W)")
    if len(values) not in (2, 3) or not all(type(v) is int and v > 0 for v in values):
        raise InputError(f"input_size: expected an int, (H, W) or (C, H, W) of positive ints, found {size!r}")
    return (channels, values[0], values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def _input_channels(model: nn.Module) -> list[int]:
    """Channels that the model may take: what its configuration says, and what its first convolution takes.

    Where the convolution alone tells, the three of a colour image are tried after it; it comes again at the end, for
    the last candidate is tried on all kinds of tensors.
    """
    configured = [(_configuration(model, name) or {}).get("input_size") for name in _CONFIGURATIONS]
    channels = [size[0] for size in configured if size is not None]
    of_config = getattr(getattr(model, "config", None), "num_channels", None)
    convolution = next((m.in_channels for m in model.modules() if isinstance(m, _ConvNd)), 3)
    channels += [of_config] if isinstance(of_config, int) else []
    return list(dict.fromkeys([*channels, convolution])) if channels else [convolution, _COLOURS, convolution]


_COLOURS = 3

_CONFIGURATIONS = ("pretrained_cfg", "default_cfg")


def _configuration(model: nn.Module, name: str) -> Mapping[str, Any] | None:
    found = getattr(model, name, None)
    return found if isinstance(found, Mapping) else None


def _image(model: nn.Module, size: tuple[int, int, int]) -> torch.Tensor:
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if reference.device.type == "meta":
        return torch.empty(BATCH, *size, dtype=reference.dtype, device="meta")
    try:
        image = torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0))
    except (RuntimeError, TypeError, OverflowError) as error:  # no such memory, or no such number
        raise InputError(f"input_size: no image of {'x'.join(map(str, size))} can be made: {error}") from error
    return image.to(reference.device, reference.dtype)


def _from_configuration(model: nn.Module) -> tuple[list[tuple[int, int, int]], str]:
    size, origin = None, ""
    for name in _CONFIGURATIONS:
        if size is None and (configured := (_configuration(model, name) or {}).get("input_size")) is not None:
            built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
            size, origin = built_for if isinstance(built_for, tuple | list) else configured[-2:], f"model.{name}"
    config = getattr(model, "config", None)
    if size is None:
        size = getattr(config, "image_size", None) or getattr(model, "image_size", None)
        origin = "model.config" if config is not None else "model.image_size"
    if not isinstance(size, int | tuple | list):
        raise InputError(
            f"no input size found: {type(model).__name__} has no pretrained_cfg, default_cfg or config.image_size. "
            "Give input_size=224, input_size=(H, W) or example_inputs=, of the resolution that it is trained at."
        )
    sides = size if isinstance(size, int) else tuple(size)
    return [_normalise(sides, channels) for channels in _input_channels(model)], origin
