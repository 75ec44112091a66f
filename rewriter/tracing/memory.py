"""Which tensors share memory, and which tensors the modules of a model hold."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def storage_of(tensor: torch.Tensor) -> int:
    """A number that is equal for tensors that share memory: views, and results of ``detach()`` and ``.data``."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse and opaque tensors have none
        return id(tensor)


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters, buffers and tensors in plain attributes, with their paths, under all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if issubclass(type(value), torch.Tensor):  # issubclass, because a weak proxy stored here may be dead
                yield f"{path}.{name}" if path else name, value
