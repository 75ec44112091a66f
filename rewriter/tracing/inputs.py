"""What to run a model on: given by the caller, or read from the model's own configuration."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.errors import InputError
from rewriter.image_size import configured_channels, configured_size
from rewriter.tracing.containers import map_tensors, tensors_in
from rewriter.tracing.input_types import ExampleInputs, InputSize

BATCH = 2
"""Batch size of synthetic inputs: batch norm in training needs more than one value per channel."""

_COLOURS = 3


class Origin(enum.StrEnum):
    """Where the arguments of a call came from, as worded in messages and plans."""

    EXAMPLE_INPUTS = "example_inputs"
    INPUT_SIZE = "input_size"
    PRETRAINED_CFG = "model.pretrained_cfg"
    DEFAULT_CFG = "model.default_cfg"
    CONFIG = "model.config"
    IMAGE_SIZE = "model.image_size"
    BATCH = "batch 0"  # of the data; a model is traced on its first batch


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of the model, their origin, and the image's ``(C, H, W)`` if they are synthetic."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: Origin
    image_size: tuple[int, int, int] | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Apply ``change`` to every tensor, keeping the structure."""
        return replace(self, args=map_tensors(self.args, change), kwargs=map_tensors(self.kwargs, change))


def candidate_inputs(
    model: nn.Module, example_inputs: ExampleInputs | None = None, input_size: InputSize | None = None
) -> list[Inputs]:
    """Arguments to run ``model`` on, on the model's device and in its floating-point type; the most likely first.

    There are two candidates if the model's configuration and its first convolution disagree on the channels: either may
    be right (a model made with ``in_chans=1``, a stem that rearranges pixels before convolving them). Without a
    configuration, the convolution that was created first may not be the one that reads the image, so three channels are
    tried as well.

    Args:
        model: the model.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or one list of tensors
            (detection models).
        input_size: an int, ``(H, W)`` or ``(C, H, W)``; never with a batch dimension. If neither is given, it is read
            from the model's own configuration (``pretrained_cfg``, ``default_cfg``, ``config.image_size``).

    Raises:
        InputError: no size was given and the model has none, or the size does not have one of the three forms.
    """
    if example_inputs is not None and input_size is not None:
        raise InputError("give example_inputs or input_size, not both")
    if example_inputs is not None:
        return [_from_examples(example_inputs)]
    if input_size is not None:
        sizes, origin = [_normalise(input_size, channels) for channels in _input_channels(model)], Origin.INPUT_SIZE
    else:
        sizes, origin = _from_configuration(model)
    return [Inputs((_image(model, size),), {}, origin, size) for size, _ in itertools.groupby(sizes)]


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
    return Inputs(args, kwargs, Origin.EXAMPLE_INPUTS)


def _normalise(size: Any, channels: int) -> tuple[int, int, int]:
    values = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(values) == 4:
        raise InputError(f"input_size {values} has four numbers; leave the batch away: (C, H, W)")
    if len(values) not in (2, 3) or not all(type(v) is int and v > 0 for v in values):
        raise InputError(f"input_size: expected an int, (H, W) or (C, H, W) of positive ints, found {size!r}")
    return (channels, values[0], values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def _input_channels(model: nn.Module) -> list[int]:
    """The numbers of channels that the model may take, by its configuration and by its first convolution.

    If only the convolution says, the three of a colour image are tried next; its own number is repeated at the end,
    because the last candidate is tried on all backends.
    """
    configured = configured_channels(model)
    convolution = next((m.in_channels for m in model.modules() if isinstance(m, _ConvNd)), _COLOURS)
    return list(dict.fromkeys([*configured, convolution])) if configured else [convolution, _COLOURS, convolution]


def _image(model: nn.Module, size: tuple[int, int, int]) -> torch.Tensor:
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if reference.device.type == "meta":
        return torch.empty(BATCH, *size, dtype=reference.dtype, device="meta")
    try:
        image = torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0))
    except (RuntimeError, TypeError, OverflowError) as error:  # not enough memory, or too large a number
        raise InputError(f"input_size: no image of {'x'.join(map(str, size))} can be made: {error}") from error
    return image.to(reference.device, reference.dtype)


def _from_configuration(model: nn.Module) -> tuple[list[tuple[int, int, int]], Origin]:
    found = configured_size(model)
    if found is None:
        raise InputError(
            f"no input size found: {type(model).__name__} has no pretrained_cfg, default_cfg or config.image_size. "
            "Give input_size=224, input_size=(H, W) or example_inputs=, of the resolution that it is trained at."
        )
    return [_normalise(found.sides, channels) for channels in _input_channels(model)], Origin(found.attribute)
