"""The Python frames, and the modules they belong to, that led to an operation."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

_TORCH_ROOT = os.path.dirname(torch.__file__) + os.sep
_CALL_MACHINERY = {nn.Module._wrapped_call_impl.__code__, nn.Module._call_impl.__code__}


@dataclass(frozen=True)
class Frame:
    """One Python frame on the path from a module call down to an operation.

    Attributes:
        path: path of the module whose method this is; None for a helper function.
        code: the running code; ``instruction`` is the index in it (``f_lasti``).
        invocation: equal for two frames only if they are the same call of the same function.
        arguments: the function's positional parameters as nodes (None if not a tensor), without ``self``.
        receives: whether there is a ``self``: it is a method of a module, or of another object.
    """

    path: str | None
    code: types.CodeType
    instruction: int
    line: int
    invocation: int
    arguments: tuple[fx.Node | None, ...] = ()
    receives: bool = False


@dataclass(frozen=True)
class Owner:
    """The innermost module method that issued an operation."""

    path: str
    method: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.path or '(root)'}.{self.method} ({os.path.basename(self.file)}:{self.line})"


class FrameReader:
    """Reads the stack above an operation, up to the call of the module it belongs to."""

    def __init__(self, paths: dict[int, str], node_of: Callable[[object], fx.Node | None]) -> None:
        self.boundaries: set[types.CodeType] = set()
        self.machinery: set[types.CodeType] = set(_CALL_MACHINERY)
        self._paths = paths
        self._node_of = node_of
        self._seen: dict[int, _Identity] = {}

    def read(self, frame: types.FrameType | None) -> tuple[Frame, ...]:
        """Frames from ``frame`` outwards, innermost first; torch's internal frames are left out."""
        found = []
        while frame is not None and frame.f_code not in self.boundaries:
            if frame.f_code not in self.machinery:
                _, invocation, path, arguments, receives = self._identify(frame)
                if path is not None or not frame.f_code.co_filename.startswith(_TORCH_ROOT):
                    where = path, frame.f_code, frame.f_lasti, frame.f_lineno
                    found.append(Frame(*where, invocation, arguments, receives))
            frame = frame.f_back
        return tuple(found)

    def _identify(self, frame: types.FrameType) -> _Identity:
        key = id(frame)
        if key not in self._seen:  # the frame is kept alive so that its id is not reused
            code, local = frame.f_code, frame.f_locals
            values = [local.get(name) for name in code.co_varnames[: code.co_argcount]]
            path = self._paths.get(id(values[0])) if values and isinstance(values[0], nn.Module) else None
            receives = path is not None or (bool(values) and _is_method_of(values[0], code))
            nodes = tuple(self._node_of(value) for value in values[receives:])
            self._seen[key] = (frame, len(self._seen), path, nodes, receives)
        return self._seen[key]

    def clear(self) -> None:
        """Release the frames, and with them all their local variables."""
        self._seen.clear()


_Identity = tuple[types.FrameType, int, str | None, tuple[fx.Node | None, ...], bool]


def _is_method_of(value: object, code: types.CodeType) -> bool:
    """Whether ``code`` is that of a method of an object, or of a class, of the user's, possibly behind decorators."""
    classes = value.__mro__ if isinstance(value, type) else type(value).__mro__
    return any(_runs(cls.__dict__.get(code.co_name), code) for cls in classes)


def _runs(attribute: object, code: types.CodeType) -> bool:
    while attribute is not None and not isinstance(attribute, staticmethod):
        if getattr(attribute, "__code__", None) is code:
            return True
        attribute = getattr(attribute, "__wrapped__", None)  # of a classmethod, too
    return False


def owner_of(frames: tuple[Frame, ...], default_path: str) -> Owner:
    """The innermost module method among ``frames``."""
    for frame in frames:
        if frame.path is not None:
            return Owner(frame.path, frame.code.co_name, frame.code.co_filename, frame.line)
    if frames:
        return Owner(default_path, frames[-1].code.co_name, frames[-1].code.co_filename, frames[-1].line)
    return Owner(default_path, "forward", "", 0)
