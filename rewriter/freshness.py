"""Does a model carry trained weights, or the ones it was created with?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from rewriter.tracing.kinds import is_norm


def carries_trained_weights(model: nn.Module) -> bool:
    """Whether norm statistics or affine parameters have left their initial values.

    A model without any norm counts as trained: nothing in it tells. Tensors without values (meta) count as fresh.
    Layers that are created with other values (a zero-initialised last gamma) are fresh as long as each tensor is
    constant: training makes the entries of a tensor differ.
    """
    norms = [module for module in model.modules() if is_norm(module)]
    if not any(True for norm in norms for _ in _tensors(norm)):
        return True
    return any(is_trained(norm) for norm in norms)


def is_trained(norm: nn.Module) -> bool:
    """Whether the statistics or affine parameters of a norm have left their initial values."""
    return any(_varies(tensor.detach()) for tensor in _tensors(norm) if tensor.device.type != "meta")


def _tensors(norm: nn.Module) -> Iterator[torch.Tensor]:
    return (t for t in (*norm._parameters.values(), *norm._buffers.values()) if t is not None)


def _varies(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())
