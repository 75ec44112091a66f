"""Adapters of peft: verbs that look for places to edit, or run the model as it was rewritten, come before them."""

from __future__ import annotations

from torch import nn

from rewriter.errors import ModelError
from rewriter.wrappers import holds_adapters


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model in which peft has put adapters around layers: guidelines do not know the layers any more.

    Raises:
        ModelError: with when in a script to rewrite.
    """
    for path, module in model.named_modules():
        if holds_adapters(module):
            where = f"module {path!r}" if path else "the model"
            raise ModelError(
                f"{where} has adapters of peft, which hide layers and dropouts. Rewrite first (and calibrate), then "
                "add adapters; or merge them first: model.merge_and_unload()"
            )
