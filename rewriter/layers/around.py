"""Behaviours that run an added layer before or after a module's own forward.

For modules that are not called by a method of the user's, such as those in an ``nn.Sequential``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import NotScripted


@register_layer("rewriter/layer-before")
class LayerBefore(NotScripted):
    """Runs the child ``layer_before`` on the input."""

    @property
    def layer_before(self) -> str:
        return str(self.__dict__.get("layer_before", ""))

    @layer_before.setter
    def layer_before(self, name: str) -> None:
        self.__dict__["layer_before"] = name

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        layer: nn.Module = self.get_submodule(self.layer_before)
        return super().forward(layer(input), *args, **kwargs)


@register_layer("rewriter/layer-behind")
class LayerBehind(NotScripted):
    """Runs the child ``layer_behind`` on the output."""

    @property
    def layer_behind(self) -> str:
        return str(self.__dict__.get("layer_behind", ""))

    @layer_behind.setter
    def layer_behind(self, name: str) -> None:
        self.__dict__["layer_behind"] = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        layer: nn.Module = self.get_submodule(self.layer_behind)
        return layer(super().forward(*args, **kwargs))
