"""Layers and behaviours that passes put into models, known by name.

A plan, a saved directory and a pickle name a layer; only layers registered here, by an installed pass, can be named.
So loading any of them never imports or runs anything that the file chooses.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from rewriter.errors import PlanError

PASS_GROUP = "rewriter.passes"
_LAYERS: dict[str, type[nn.Module]] = {}

Layer = TypeVar("Layer", bound=type[nn.Module])


def register_layer(name: str) -> Callable[[Layer], Layer]:
    """Class decorator: make a layer known as ``name`` (``"pass-name/layer-name"``)."""

    def register(cls: Layer) -> Layer:
        _LAYERS[name] = cls
        return cls

    return register


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
