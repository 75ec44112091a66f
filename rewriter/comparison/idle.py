"""Rewrites that change nothing, told before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewriter.comparison.equivalence import same_in_training
from rewriter.comparison.loading import Data, first_batch
from rewriter.comparison.subject import passes_of
from rewriter.comparison.training import OptimizerFactory, decays_by_place
from rewriter.layers.registry import calibrated_layers
from rewriter.planning.record import records_of

_IMAGES = 8


def why_idle(
    before: nn.Module, after: nn.Module, data: Data, device: torch.device, optimizer: OptimizerFactory | None
) -> str:
    """Why training both arms would give the same curves; empty if it would not, or if that cannot be told.

    Only a rewrite is judged: by its plan, by the optimizer's groups, and by outputs and buffers of some training images
    in training mode. A model that was changed by other means alone is always worth training.

    Args:
        before, after: the two models, on the CPU; they are put back.
        data: training images to look at.
        device: where to look at them.
        optimizer: the user's own; None for that of the recipe.
    """
    layers = calibrated_layers(after)
    if not records_of(after) or not all(layer.calibrated for layer in layers.values()):
        return ""
    if not same_optimizer(before, after, optimizer):
        return ""
    batch = first_batch(data.train or ())
    if batch is None or len(batch[0]) < 2 or not same_in_training(before, after, batch[0][:_IMAGES].to(device)):
        return ""
    if passes_of(after):
        return (
            "with the same random numbers both arms give the same outputs in training mode, too: what was edited has "
            "no effect yet (a dropout of rate 0 drops nothing, a map of one position is not pooled)"
        )
    return "no pass found a place to edit: both arms are the same model"


def same_optimizer(before: nn.Module, after: nn.Module, optimizer: OptimizerFactory | None) -> bool:
    """Whether the optimizers of both arms train the same parameters with the same options."""
    if optimizer is None:
        return not decays_by_place(after) and _trainable(before) == _trainable(after)
    return _trainable(before) == _trainable(after) and _options(before, optimizer) == _options(after, optimizer)


def _trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _options(model: nn.Module, optimizer: OptimizerFactory) -> dict[str, Any]:
    """Of each parameter that the optimizer trains, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Any] = {}
    for group in getattr(optimizer(model), "param_groups", ()):  # what is no optimizer is refused before training
        options = {name: repr(value) for name, value in group.items() if name not in ("params", "param_names", "name")}
        found |= {names.get(id(parameter), ""): options for parameter in group["params"]}
    return found
