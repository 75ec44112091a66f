"""Layers and behaviours that passes put into models, known by name.

A plan, a saved directory and a pickle name a layer; only layers registered here, by an installed pass, can be named.
So loading any of them never imports or runs anything that the file chooses.
"""

from __future__ import annotations

import abc
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from rewriter.errors import PlanError

PASS_GROUP = "rewriter.passes"
_LAYERS: dict[str, type[nn.Module]] = {}

Layer = TypeVar("Layer", bound=type[nn.Module])


class CalibratedLayer(nn.Module, abc.ABC):
    """Base of layers that subtract and divide by constants of the data, one pair for each tensor that they take.

    The constants are buffers.

    The forward takes one tensor or a sequence of tensors. The layer is the identity until :func:`rewriter.calibrate`
    has measured the constants; :func:`rewriter.fold` moves them into the weights that follow.

    Attributes:
        operands: how many tensors the forward takes.
        absorbed: after folding, for each tensor the padding to apply (as ``torch.nn.functional.pad`` takes it) and the
            value to pad with; None before.
    """

    operands: int
    absorbed: list[tuple[list[int], float]] | None

    @property
    @abc.abstractmethod
    def calibrated(self) -> bool:
        """Whether it is more than the identity."""

    @abc.abstractmethod
    def constants(self) -> list[tuple[float, float]]:
        """For each tensor, what is subtracted and what it is then multiplied by."""

    @abc.abstractmethod
    def set_constants(self, constants: Sequence[tuple[float, float]]) -> None:
        """Change what :meth:`constants` gives."""


def calibrated_layers(model: nn.Module) -> dict[str, CalibratedLayer]:
    """The layers of ``model`` that have to be calibrated, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, CalibratedLayer)}


def register_layer(name: str) -> Callable[[Layer], Layer]:
    """Class decorator: make a layer known as ``name`` (``"pass-name/layer-name"``)."""

    def register(cls: Layer) -> Layer:
        _LAYERS[name] = cls
        return cls

    return register


def is_layer(cls: type) -> bool:
    """Whether a pass registered this class, itself and not a base of it."""
    return cls in _LAYERS.values()


def layer_class(name: str) -> type[nn.Module]:
    """The layer registered as ``name``.

    Raises:
        PlanError: no installed pass registers such a layer.
    """
    if name not in _LAYERS:  # in a fresh process the passes have not been imported yet
        for entry_point in importlib.metadata.entry_points(group=PASS_GROUP):
            entry_point.load()
    if name not in _LAYERS:
        raise PlanError(
            f"no installed pass provides the layer {name!r} (known: {', '.join(sorted(_LAYERS)) or 'none'}). "
            "Install the package whose pass made this plan."
        )
    return _LAYERS[name]
