"""The layer that the pass inserts before a fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.layers.registry import CalibratedLayer, register_layer
from rewriter.layers.scripting import NotScripted

_IDENTITY = {"mean": 0.0, "inverse_std": 1.0}


@register_layer("scale-equalizer/equalizer")
class Equalizer(NotScripted, CalibratedLayer):
    """``(x - mean) / std`` for each fused map, with constants measured over the whole data set.

    The constants are one number per map, not per channel, and the same in training and evaluation. They are buffers,
    not parameters. The layer is the identity, bit for bit, until :func:`rewriter.calibrate` has measured them, also
    after a model leaves the meta device. A checkpoint without them leaves them unchanged.

    Takes a tensor of any shape, or a sequence of ``operands`` tensors, and returns the same.

    Args:
        operands: how many maps are fused.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, operands: int = 1) -> None:
        super().__init__()
        self.operands, self.absorbed = operands, None
        for name, identity in _IDENTITY.items():
            self.register_buffer(name, torch.full((operands,), identity))

    def forward(self, x: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(x, torch.Tensor):
            return self._equalized(x, 0)
        if len(x) != self.operands:
            raise ValueError(
                f"the equalizer was made for a fusion of {self.operands} maps, found {len(x)}; rewrite the model again"
            )
        return [self._equalized(operand, index) for index, operand in enumerate(x)]

    def _equalized(self, x: torch.Tensor, index: int) -> torch.Tensor:
        if self.absorbed is None:
            return (x - self.mean[index]) * self.inverse_std[index]
        padding, value = self.absorbed[index]
        return nn.functional.pad(x, padding, value=value) if any(padding) else x

    @property
    def calibrated(self) -> bool:
        if self.mean.is_meta:
            return False
        return self.absorbed is not None or bool((self.mean != 0).any()) or bool((self.inverse_std != 1).any())

    def constants(self) -> list[tuple[float, float]]:
        return list(zip(self.mean.double().tolist(), self.inverse_std.double().tolist(), strict=True))

    def set_constants(self, constants: Sequence[tuple[float, float]]) -> None:
        means, inverse = zip(*constants, strict=True)
        with torch.no_grad():
            self.mean.copy_(torch.tensor(means, dtype=torch.float64))
            self.inverse_std.copy_(torch.tensor(inverse, dtype=torch.float64))

    def reset_parameters(self) -> None:
        for name, identity in _IDENTITY.items():
            self.get_buffer(name).fill_(identity)

    def extra_repr(self) -> str:
        return f"operands={self.operands}, calibrated={self.calibrated}"
