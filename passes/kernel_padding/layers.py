"""The behaviour of a convolution with a padded kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import NotScripted

_ENDS, _KEEPS = "kernel_padding", "keeps_positions"


def _kept_in_module(name: str, default: Any) -> property:
    def get(module: nn.Module) -> Any:
        return module.__dict__.get(name, default)

    def set_value(module: nn.Module, value: Any) -> None:
        module.__dict__[name] = value

    return property(get, set_value)


@register_layer("kernel-padding/padded")
class PaddedKernel(NotScripted):
    """Behaviour of a convolution whose kernel was padded.

    Where the padded kernel has a position less than the original one, the map is padded with zeros at the bottom and
    right, so that outputs keep their size. A checkpoint of the original is padded when it is loaded.

    Attributes:
        kernel_padding: for each spatial dimension how many zeros stand before and behind the original kernel.
        keeps_positions: whether the map is padded where needed; not for layers that pad by themselves.
    """

    weight: torch.Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    kernel_padding = _kept_in_module(_ENDS, ())
    keeps_positions = _kept_in_module(_KEEPS, False)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The size of the padded kernel; the attribute of the original stays what it was."""
        return tuple(self.weight.shape[2:])

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.keeps_positions:
            missing = self._missing(input.shape[-len(self.stride) :])
            if any(missing):
                input = F.pad(input, [value for size in reversed(missing) for value in (0, size)])
        return super().forward(input, *args, **kwargs)

    def _missing(self, size: Sequence[int]) -> list[int]:
        """How much larger a map has to be in each dimension to have as many positions as with the original kernel."""
        missing = []
        for length, stride, padding, kernel, (before, behind) in zip(
            size, self.stride, self.padding, self.weight.shape[2:], self.kernel_padding, strict=True
        ):
            room = length + 2 * padding
            steps = (room - (kernel - before - behind)) // stride
            missing.append(max(0, steps * stride + kernel - room))
        return missing

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = f"{prefix}weight"
        given = state_dict.get(key)
        if isinstance(given, torch.Tensor) and given.dim() == self.weight.dim():
            ends = [end for pair in reversed(self.kernel_padding) for end in pair]
            added = [sum(pair) for pair in self.kernel_padding]
            if [size + more for size, more in zip(given.shape[2:], added, strict=True)] == list(self.weight.shape[2:]):
                state_dict = {**state_dict, key: F.pad(given, ends)}  # the original's
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel padded from {'x'.join(map(str, self.__dict__['kernel_size']))}"
