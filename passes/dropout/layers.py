"""The layers that the dropout pass adds to models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import NotScripted

register_layer("dropout/dropout")(nn.Dropout)


@register_layer("dropout/moved")
class MovedDropout(NotScripted, nn.Dropout):
    """Element-wise dropout that takes its rate from the dropout it was moved from.

    The rate stays where the user looks for it: ``origin.p`` and ``self.p`` are the same number. Active only if both are
    in training mode, so that ``origin.eval()`` still switches it off. Never in place: others may read the tensor.
    """

    _origin: tuple[nn.Dropout]

    def __init__(self, origin: nn.Dropout) -> None:
        object.__setattr__(self, "_origin", (origin,))  # a tuple, so that the origin is not registered as a child
        super().__init__(origin.p)

    @property  # type: ignore[override]
    def p(self) -> float:
        """The origin's drop rate."""
        return self._origin[0].p

    @p.setter
    def p(self, rate: float) -> None:
        self._origin[0].p = rate

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.dropout(input, self.p, self.training and self._origin[0].training)

    def extra_repr(self) -> str:
        return f"p={self.p}, shared with the dropout it was moved from"


@register_layer("dropout/bypassed")
class Bypassed(nn.Module):
    """Behaviour of a dropout that is the identity in its place; it holds the rate for the dropout that replaces it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bypassed by rewriter"


@register_layer("dropout/drops-output")
class DropsOutput(NotScripted):
    """Behaviour of layers whose child ``dropout`` acts on the output."""

    dropout: nn.Module | float

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _added(self)(super().forward(*args, **kwargs))


@register_layer("dropout/drops-input")
class DropsInput(NotScripted):
    """Behaviour of layers whose child ``dropout`` acts on the input (``dropout_1`` of ``nn.GRU``, which has a rate)."""

    dropout: nn.Module | float

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(_added(self)(input), *args, **kwargs)


def _added(layer: DropsInput | DropsOutput) -> nn.Module:
    """The dropout that was added to ``layer``, which may have had an attribute of that name."""
    return layer.dropout if isinstance(layer.dropout, nn.Module) else layer.get_submodule("dropout_1")
