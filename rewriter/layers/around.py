"""Behaviours of modules that run a layer which was added to them: before or behind their own forward, or instead of it.

For modules that are not called by a method of the user's, such as those in an ``nn.Sequential``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import NotScripted


def _name_of_child(option: str) -> property:
    """An option that holds the name of the child."""

    def get(module: nn.Module) -> str:
        return str(module.__dict__.get(option, ""))

    def set_name(module: nn.Module, name: str) -> None:
        module.__dict__[option] = name

    return property(get, set_name)


@register_layer("rewriter/layer-before")
class LayerBefore(NotScripted):
    """Runs the child ``layer_before`` on the input."""

    layer_before = _name_of_child("layer_before")

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        layer: nn.Module = self.get_submodule(self.layer_before)
        return super().forward(layer(input), *args, **kwargs)

    def extra_repr(self) -> str:
        return _said(super().extra_repr(), f"runs {self.layer_before} first")


@register_layer("rewriter/layer-behind")
class LayerBehind(NotScripted):
    """Runs the child ``layer_behind`` on the output."""

    layer_behind = _name_of_child("layer_behind")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        layer: nn.Module = self.get_submodule(self.layer_behind)
        return layer(super().forward(*args, **kwargs))

    def extra_repr(self) -> str:
        return _said(super().extra_repr(), f"runs {self.layer_behind} on its output")


@register_layer("rewriter/layer-instead")
class LayerInstead(NotScripted):
    """Runs the child ``layer_instead`` in place of its own forward."""

    layer_instead = _name_of_child("layer_instead")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self.layer_instead)(*args, **kwargs)

    def extra_repr(self) -> str:
        return _said(super().extra_repr(), f"runs {self.layer_instead} instead")


def _said(options: str, what: str) -> str:
    return f"{options}, {what}" if options else what
