"""The module whose method a frame runs: not always the one being called, since modules hold methods of others."""

from __future__ import annotations

import types

from torch import nn

from rewriter.edit.classes import runs_code
from rewriter.edit.positions import Position


class Receivers:
    """The modules of one model that methods are called on."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._known: dict[tuple[str, str, types.CodeType], str] = {}

    def path(self, position: Position) -> str:
        """The path of the module that the frame's function was called on, if its class has that function.

        For anything else, such as a helper function, it is the module whose call the frame is in.
        """
        given, call, code = position.frame.path, position.call.path, position.frame.code
        if given is None or given == call:
            return call
        key = given, call, code
        if key not in self._known:
            receiver, called = self._model.get_submodule(given), self._model.get_submodule(call)
            other = receiver is not called and runs_code(type(receiver), code)
            self._known[key] = self._paths[id(receiver)] if other else call
        return self._known[key]
