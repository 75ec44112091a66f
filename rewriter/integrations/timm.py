"""timm's optimizers with our division into what decays and what does not.

timm hands the model alone to ``param_group_fn=``: ``weight_decay`` and ``layer_decay`` get lost on the way. These take
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from torch import nn

from rewriter.errors import OptimizerError
from rewriter.grouped_parameters import ParamGroups
from rewriter.optimizer_groups import param_groups
from rewriter.wrappers import looked_through


def create_optimizer(model: nn.Module, args: Any, **changes: Any) -> torch.optim.Optimizer:
    """The optimizer that timm's ``create_optimizer_v2(model, **optimizer_kwargs(cfg=args))`` makes, with our groups.

    Args:
        model: the model, rewritten or not.
        args: the options of timm's ``train.py`` (``opt``, ``lr``, ``weight_decay``, ``momentum``, ``layer_decay``, …).
        **changes: of ``create_optimizer_v2``, over what ``args`` says.

    Raises:
        OptimizerError: ``args`` is not such options, or as :func:`rewriter.param_groups`.
    """
    try:
        settings = {**timm.optim.optimizer_kwargs(cfg=args), **changes}  # type: ignore[no-untyped-call]
    except AttributeError as error:
        raise OptimizerError(f"args: expected the options of timm's train.py, found {args!r} ({error})") from error
    decay, least, frozen = (settings.pop(f"layer_decay{end}", None) for end in ("", "_min_scale", "_no_opt_scale"))
    fn = param_group_fn(settings.get("weight_decay", 0.0), decay, least or 0.0, frozen)
    return timm.optim.create_optimizer_v2(fn(model), **settings)


def param_group_fn(
    weight_decay: float | None = 0.05,
    layer_decay: float | None = None,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
) -> Callable[[nn.Module], ParamGroups]:
    """What timm's ``create_optimizer_v2`` takes as ``param_group_fn``.

    Args:
        weight_decay: of the groups that decay.
        layer_decay: the factor of the learning rate from each layer to the one below it, as timm's
            ``param_groups_layer_decay`` takes it; each of its groups is divided in two. None for none.
        min_scale, no_opt_scale: of ``param_groups_layer_decay``: the least factor, and the factor below which layers
            are frozen.
    """

    def groups(model: nn.Module) -> ParamGroups:
        model = looked_through(model)
        within = None
        if layer_decay is not None:
            within = timm.optim.param_groups_layer_decay(
                model, weight_decay or 0.0, layer_decay=layer_decay, min_scale=min_scale, no_opt_scale=no_opt_scale
            )
        return param_groups(model, weight_decay, within=within)

    return groups
