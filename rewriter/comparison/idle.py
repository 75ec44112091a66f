"""Rewrites that change nothing, told before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from rewriter.comparison.equivalence import same_in_training
from rewriter.comparison.loading import Data, pair_of
from rewriter.comparison.randomness import batches
from rewriter.comparison.subject import passes_of
from rewriter.comparison.training import decays_by_place
from rewriter.layers import calibrated_layers
from rewriter.record import records_of

_IMAGES = 8


def why_idle(before: nn.Module, after: nn.Module, data: Data, device: torch.device, *, own_optimizer: bool) -> str:
    """Why training both arms would give the same curves; empty if it would not, or if that cannot be told.

    Only a rewrite is judged, by its plan and by the outputs of some test images in training mode. A model that was
    changed by other means is always worth training.

    Args:
        before, after: the two models, on the CPU; they are put back.
        data: test images to look at.
        device: where to look at them.
        own_optimizer: whether the user's own optimizer is used, so that weight-decay decides about nothing.
    """
    layers = calibrated_layers(after)
    if not records_of(after) or not all(layer.calibrated for layer in layers.values()):
        return ""
    if decays_by_place(after) and not own_optimizer:
        return ""
    images, _ = pair_of(next(iter(batches(data.test, 0, 0))))
    if len(images) < 2 or not same_in_training(before, after, images[:_IMAGES].to(device)):
        return ""
    if passes_of(after):
        return (
            "with the same random numbers both arms give the same outputs in training mode, too: what was edited has "
            "no effect yet (a dropout of rate 0 drops nothing)"
        )
    return "no pass found a place to edit: both arms are the same model"
