"""Weights that are all zero hide what precedes them, so they are filled with values while a model is verified.

The last gamma of a residual branch is zero in a new ResNet, and so is the last convolution of a diffusion block. The
branch then adds nothing, whatever an edit has made of it, and the effect would only show in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


def zero_gains(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that are zero in every entry and act as factors: all but biases."""
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] != "bias" and _can_be_filled(parameter) and not bool(parameter.detach().any())
    )


@contextlib.contextmanager
def filled(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Fill the parameters of these names, if ``model`` has them, within the context; then reset them to zero.

    Entries differ from each other, at the scale of a layer's initialisation. The version counters of the tensors do not
    change: a pending backward pass finds them unmodified.
    """
    parameters = dict(model.named_parameters())
    changed = [(found.data, found.detach().clone()) for name in names if (found := parameters.get(name)) is not None]
    try:
        for data, _ in changed:
            inputs = data[0].numel() if data.dim() > 1 else 1
            values = torch.linspace(0.5, 1.5, data.numel(), device=data.device) / inputs
            data.copy_(values.view(data.shape))
        yield
    finally:
        for data, before in changed:
            data.copy_(before)


def _can_be_filled(parameter: nn.Parameter) -> bool:
    """Whether it is a plain tensor whose values no other process reads."""
    if type(parameter) is not nn.Parameter or type(parameter.data) is not torch.Tensor:
        return False
    plain = parameter.is_floating_point() and parameter.layout is torch.strided and not parameter.is_inference()
    return plain and not parameter.is_meta and not (parameter.device.type == "cpu" and parameter.is_shared())  # type: ignore[no-untyped-call]
