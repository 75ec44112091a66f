"""Arguments of a recorded call, given by position or by name."""

from __future__ import annotations

import operator
import types
from typing import Any

import torch
from torch import fx


def argument(call: fx.Node, name: str, position: int | None, default: Any = None) -> Any:
    """The argument ``name`` of a function call, which may also be given at ``position`` (None: by name only)."""
    if name in call.kwargs:
        return call.kwargs[name]
    return call.args[position] if position is not None and len(call.args) > position else default


def argument_index(consumer: fx.Node, operand: fx.Node) -> int | None:
    """The index of ``operand`` among the positional arguments of ``consumer``; None if it is not one of them."""
    return next((index for index, argument in enumerate(consumer.args) if argument is operand), None)


def is_tensor_method(node: fx.Node) -> bool:
    """Whether a call is of a tensor method, whose receiver is its first argument."""
    target = node.target
    if isinstance(target, (types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    return isinstance(target, types.FunctionType) and getattr(torch.Tensor, target.__name__, None) is target


def is_reflected(node: fx.Node) -> bool:
    """Whether an operator is called by its right operand: ``1 - x`` is ``x.__rsub__(1)``."""
    name = getattr(node.target, "__name__", "")
    return name.startswith("__r") and name.endswith("__") and hasattr(operator, name.replace("__r", "__", 1))
