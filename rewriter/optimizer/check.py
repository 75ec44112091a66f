"""Check that an optimizer trains the model it is meant to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rewriter.errors import OptimizerError, listed
from rewriter.model.whole_state import is_sharded
from rewriter.model.wrappers import looked_through


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that does not hold every trainable parameter of ``model``.

    The usual cause is an optimizer built before :func:`rewriter.rewrite`, which returns a copy of the model unless
    ``inplace=True``. Further parameters in the optimizer (a loss with its own, a second model) are fine.

    Args:
        model: the model being trained; a wrapped or compiled one is unwrapped.
        optimizer: an optimizer, any object with its ``param_groups``, or a list of several.

    Raises:
        OptimizerError: naming the parameters that are missing; or ``optimizer`` is not an optimizer.
        ModelError: ``model`` is not a model.

    Example:
        >>> original = timm.create_model("test_resnet", drop_rate=0.2)
        >>> optimizer = torch.optim.AdamW(rewriter.param_groups(original))
        >>> rewriter.check_optimizer(rewriter.rewrite(original, "dropout", inplace=True), optimizer)
    """
    model = looked_through(model)
    held = {id(tensor): tensor for tensor in _tensors(optimizer)}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = {name: parameter for name, parameter in trainable.items() if id(parameter) not in held}
    if not missing:
        return
    names = list(missing)
    of_model = {id(parameter) for parameter in model.parameters()}
    foreign = Counter(tuple(tensor.shape) for key, tensor in held.items() if key not in of_model)
    wanted = Counter(tuple(parameter.shape) for parameter in missing.values())
    alike = (wanted & foreign).total()
    message = (
        f"the optimizer lacks {len(missing)} of {len(trainable)} trainable parameters of the model: {listed(names)}."
    )
    if 2 * alike > len(missing) and any(map(is_sharded, missing.values())):
        message += (
            f" It holds {alike} other tensors of the same shapes instead: fully_shard has put parameters of its own in "
            "their place since it was built. Build the optimizer after fully_shard, on rewriter.param_groups(model), "
            "or on groups.on(model) where the groups were made before."
        )
    elif 2 * alike > len(missing):
        message += (
            f" It holds {alike} other tensors of the same shapes instead, so it was built on another model, such as "
            "the one before rewriter.rewrite(), which returns a copy. Build the optimizer on the model that rewrite() "
            "returns, or rewrite with inplace=True; where parameters were replaced since (from the meta device, by "
            "fully_shard), on groups.on(model)."
        )
    else:
        message += " Build it on this model, or freeze what is not to be trained with requires_grad_(False)."
    raise OptimizerError(message)


def _tensors(optimizer: Any) -> Iterator[torch.Tensor]:
    if isinstance(optimizer, Sequence) and not isinstance(optimizer, str):
        if not optimizer:
            raise OptimizerError("expected an optimizer, found an empty list")
        for item in optimizer:
            yield from _tensors(item)
        return
    groups = getattr(optimizer, "param_groups", None)
    if isinstance(optimizer, nn.Module) or not isinstance(groups, Sequence):
        raise OptimizerError(
            f"expected an optimizer with param_groups, found {type(optimizer).__name__}; "
            "call check_optimizer(model, optimizer)"
        )
    for group in groups:
        if not isinstance(group, dict) or "params" not in group:
            raise OptimizerError(f"param_groups of {type(optimizer).__name__}: expected dicts with 'params'")
        yield from group["params"]
