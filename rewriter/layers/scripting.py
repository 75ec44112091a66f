"""Support for ``torch.jit.script``: TorchScript is a subset of Python that cannot express some layers of passes."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from rewriter.errors import ModelError

FORWARD_OF_BASE = "_rewriter_forward_of_base"
"""The name under which a behaviour finds the forward of the class behind it: TorchScript has no ``super()``."""


class NotScripted(nn.Module):
    """Base class of layers and behaviours that TorchScript cannot express; fails early, with a clear message."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Called first by ``torch.jit.script``.

        Raises:
            ModelError: always, except in a subclass that can be scripted.
        """
        layer = next(cls.__name__ for cls in type(self).__mro__ if "_rewriter_edit" not in vars(cls))
        raise ModelError(
            f"the layer {layer} of rewriter cannot be scripted. torch.export.export, torch.compile and, in evaluation "
            "mode, torch.jit.trace take the model as it is; for torch.jit.script give rewriter.undo(model)"
        )


def forward_of_base(base: type) -> dict[str, Any]:
    """The forward of ``base`` as a method of another name, for a class that puts behaviours in front of ``base``."""
    forward = getattr(base, "forward", None)
    if type(forward) is not types.FunctionType:
        return {}
    copy = types.FunctionType(
        forward.__code__, forward.__globals__, FORWARD_OF_BASE, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__, copy.__annotations__ = forward.__kwdefaults__, forward.__annotations__
    return {FORWARD_OF_BASE: copy}
