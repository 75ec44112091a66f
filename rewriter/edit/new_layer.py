"""A layer to be added to a module."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rewriter.edit.edits import AddModule
from rewriter.layers.added import AddedLayer, why_not_added
from rewriter.layers.registry import layer_class, layer_name
from rewriter.model.random_state import random_state_kept
from rewriter.plain_data import json_value

LayerName = str | type[nn.Module]
"""A registered layer: its name, or its class."""


@dataclass(frozen=True)
class NewLayer:
    """A layer to be added."""

    layer: LayerName
    name_given: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] | None = None

    @property
    def registered(self) -> str:
        return self.layer if isinstance(self.layer, str) else layer_name(self.layer)

    @property
    def name(self) -> str:
        """The name of the child, if it is free."""
        return self.name_given or self.registered.rpartition("/")[2].replace("-", "_")

    def child(self, path: str, name: str) -> AddModule:
        """The edit that adds it to the module at ``path``.

        Raises:
            TypeError: a plan cannot hold an option, the layer does not take it, or the layer has parameters or buffers
                that checkpoints of the original model lack.
        """
        options, references = json_value(dict(self.options), "options"), dict(self.references or {})
        cls = layer_class(self.registered)
        try:
            inspect.signature(cls).bind(**options, **references)
        except TypeError as error:
            taken = str(inspect.signature(cls)).partition(" ->")[0]
            raise TypeError(f"{cls.__qualname__}{taken} is not made with {', '.join(options)}: {error}") from None
        if not references:
            _check_that_it_can_be_made(cls, json.dumps(options))  # type: ignore[arg-type]
        return AddModule(path, name, self.registered, options, references)


@functools.lru_cache(maxsize=1024)
def _check_that_it_can_be_made(cls: type[nn.Module], options: str) -> None:
    """Construct the layer once and discard it: an error in its constructor is the pass's own, not the place's."""
    with random_state_kept():
        layer = cls(**json.loads(options))
        for part in layer.modules():
            if isinstance(part, AddedLayer) and next(part.parameters(recurse=False), None) is not None:
                part.reset_parameters()  # or else a model that leaves the meta device would be the first to ask
    if why_not := why_not_added(layer):
        raise TypeError(why_not)
