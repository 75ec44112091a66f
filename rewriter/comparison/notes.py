"""What the reader has to know about how a comparison was made, and whether a rewrite changes anything in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rewriter.comparison.equivalence import same_in_training
from rewriter.comparison.loading import YOUR_DATA, Data, first_batch
from rewriter.comparison.model_pairs import ModelPairs, passes_of, same_weights
from rewriter.comparison.training import OptimizerFactory, decays_by_place
from rewriter.layers.registry import calibrated_layers
from rewriter.planning.record import records_of
from rewriter.planning.remembered_inputs import inputs_of_rewrite

_IMAGES = 8


def why_without_effect(
    before: nn.Module, after: nn.Module, data: Data, device: torch.device, optimizer: OptimizerFactory | None
) -> str:
    """Return why training both arms would give the same curves; empty if it would not, or if that is unknown.

    Only rewrites are tested: by the plan, by the optimizer's groups, and by outputs and buffers for some training
    images in training mode. A model changed by other means is always worth training.

    The models are on the CPU and are run on ``device``; None as optimizer means the recipe's.
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
    ours, theirs = ([n for n, p in model.named_parameters() if p.requires_grad] for model in (before, after))
    if ours != theirs or optimizer is None:
        return ours == theirs and not decays_by_place(after)
    return _options(before, optimizer) == _options(after, optimizer)


def _options(model: nn.Module, optimizer: OptimizerFactory) -> dict[str, Any]:
    """Return the options of each parameter that the optimizer trains, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Any] = {}
    for group in getattr(optimizer(model), "param_groups", ()):  # anything but an optimizer is refused before training
        options = {name: repr(value) for name, value in group.items() if name not in ("params", "param_names", "name")}
        found |= {names.get(id(parameter), ""): options for parameter in group["params"]}
    return found


def notes_of(
    pairs: ModelPairs,
    first: tuple[nn.Module, nn.Module],
    data: Data,
    without_effect: str,
    *,
    seeds: int,
    trained: bool,
    optimizer: OptimizerFactory | None,
    levels_given: bool,
) -> Iterator[str]:
    """Yield one sentence each, most important first.

    Args:
        pairs, first, data: what was compared, and the models of the first seed.
        without_effect: why training both is pointless; empty if it is not, or was not requested.
        seeds, trained, optimizer: how many were requested, whether they were trained, and the user's own optimizer.
        levels_given: whether the user named the levels; if not, a note says why nothing was trained.
    """
    if without_effect:
        nothing = f"nothing was trained: {without_effect}; the level training would do it all the same"
        yield without_effect if trained else nothing
    elif data.train is None and not levels_given:
        remedy = "; give (train, test)" if data.name == YOUR_DATA else ""
        yield f"nothing was trained: {data.name} has no training images{remedy}"
    if getattr(data.train, "dataset", data.train) is getattr(data.test, "dataset", data.test):
        yield "training and test images are the same data set, so metrics say nothing of other images"
    planned = inputs_of_rewrite(first[1])
    if planned is not None and data.image_shape and planned.image_size not in (None, data.image_shape):
        sizes = (" × ".join(map(str, size)) for size in (planned.image_size or (), data.image_shape))
        yield (
            "the rewrite was planned for images of {}, the data are {}: what depends on the size may not fit; rewrite "
            "with input_size={}".format(*sizes, data.image_shape)
        )
    if trained and decays_by_place(first[1]):
        if optimizer is None:
            unchanged = "" if passes_of(first[1]) else "the model itself is unchanged; "
            yield (
                f"{unchanged}weight-decay: the optimizer of after takes its groups from rewriter.param_groups, that of "
                "before from timm's rule; leave the pass out to hold the optimizer fixed"
            )
        elif same_optimizer(*first, optimizer):
            yield "weight-decay: your optimizer decides what decays, the pass changes nothing here"
        else:
            yield "weight-decay: your optimizer decides what decays, and it does so otherwise for after than for before"
    if trained and seeds > 1 and not pairs.varies_from(first[0]):
        yield (
            "all seeds begin with the weights that were given, so the interval says nothing of other initial weights; "
            "give a function that makes the model to vary them"
        )
    if not same_weights(*first):
        yield "the two models do not begin with the same weights"
