"""A copy of a model with values of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def copy_model(model: nn.Module) -> nn.Module:
    """``deepcopy`` that also copies tensors cached during a forward pass, which plain ``deepcopy`` refuses."""
    with _DetachedCopies():
        return copy.deepcopy(model)


class _DetachedCopies(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))
