"""Whether a model carries trained weights, or those that it was created with."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from rewriter.tracing.kinds import is_norm


def carries_trained_weights(model: nn.Module) -> bool:
    """Whether norm statistics or affine parameters have left their initial values.

    A model without norms counts as trained, since there is no evidence; one without any tensors, such as a loss, does
    not. Tensors without values (meta) count as fresh.
    Layers with other initial values (a zero-initialised last gamma) are fresh as long as each tensor is constant:
    training makes its entries differ. If a norm has running statistics, only these count: transformers initialises the
    gammas of some batch norms at random.
    """
    if next(itertools.chain(model.parameters(), model.buffers()), None) is None:
        return False
    return not is_told(model) or any(is_trained(module) for module in model.modules() if is_norm(module))


def is_told(model: nn.Module) -> bool:
    """Whether ``model`` has any evidence: a norm with statistics or affine parameters."""
    return any(_telling(module) for module in model.modules() if is_norm(module))


def is_trained(norm: nn.Module) -> bool:
    """Whether the statistics or affine parameters of a norm have left their initial values."""
    return any(_varies(tensor.detach()) for tensor in _telling(norm) if tensor.device.type != "meta")


def _telling(norm: nn.Module) -> list[torch.Tensor]:
    tensors = {name: t for name, t in (*norm._parameters.items(), *norm._buffers.items()) if t is not None}
    statistics = [t for name, t in tensors.items() if name in ("running_mean", "running_var")]
    return statistics or list(tensors.values())


def _varies(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())
