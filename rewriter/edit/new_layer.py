"""A layer that is to be added to a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rewriter.edit.edits import AddModule
from rewriter.layers.registry import layer_name

LayerName = str | type[nn.Module]
"""A registered layer: its name, or its class."""


@dataclass(frozen=True)
class NewLayer:
    """A layer that is to be added."""

    layer: LayerName
    name_given: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] | None = None

    @property
    def registered(self) -> str:
        return self.layer if isinstance(self.layer, str) else layer_name(self.layer)

    @property
    def name(self) -> str:
        """What the child is called, if that is free."""
        return self.name_given or self.registered.rpartition("/")[2].replace("-", "_")

    def child(self, path: str, name: str) -> AddModule:
        """The edit that adds it to the module at ``path``."""
        return AddModule(path, name, self.registered, dict(self.options), dict(self.references or {}))
