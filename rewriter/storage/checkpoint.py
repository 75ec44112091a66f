"""Whether the weights in a checkpoint fit a model, and what they say of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rewriter.errors import StorageError, listed
from rewriter.planning.mark import MARK


def check_weights(model: nn.Module, state: Mapping[str, torch.Tensor], what: str, note: str = "") -> None:
    """Refuse weights that do not fit.

    Args:
        model: the model they are for; only read.
        state: the weights, by key.
        what: how the message refers to them.
        note: the end of the message.

    Raises:
        StorageError: naming the keys that are missing, unexpected, or of another shape.
    """
    expected = model.state_dict(keep_vars=True)
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "another shape": [
            f"{key} {list(found)} instead of {list(wanted)}"
            for key, (wanted, found) in _other_shapes(expected, state).items()
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{problem}: {listed(keys)}" for problem, keys in problems.items() if keys)
        if MARK in problems["unexpected"]:
            note = (
                f". {MARK} says that they are a rewritten model's: rewrite a fresh original with the plan of that "
                "training (rewriter.rewrite(model, plan_file=...), rewriter.from_pretrained), and load them into that"
            )
        raise StorageError(f"{what} do not fit this {type(model).__name__}: {told}{note}")


def classes_and_channels(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[int | None, int | None]:
    """Return the numbers of classes and of input channels, if weights differ from a model's in nothing else.

    Inferred from shapes alone: a classifier and its bias differ in the first dimension, a first convolution in the
    second. None for a number that equals the model's own, and for both if anything else differs.
    """
    expected = model.state_dict(keep_vars=True)
    classes, channels = set(), set()
    for wanted, found in _other_shapes(expected, state).values():
        differing = [d for d, sizes in enumerate(zip(wanted, found, strict=False)) if sizes[0] != sizes[1]]
        if len(wanted) == len(found) and differing == [0]:
            classes.add((wanted[0], found[0]))
        elif len(wanted) == len(found) >= 4 and differing == [1]:
            channels.add((wanted[1], found[1]))
        else:
            return None, None
    if expected.keys() != state.keys() or len(classes) > 1 or len(channels) > 1:
        return None, None
    return next((found for _, found in classes), None), next((found for _, found in channels), None)


def _other_shapes(
    expected: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Return the expected and actual shapes, by key, where they differ."""
    return {
        key: (tensor.shape, state[key].shape)
        for key, tensor in expected.items()
        if isinstance(tensor, torch.Tensor)
        and isinstance(state.get(key), torch.Tensor)
        and state[key].shape != tensor.shape
    }
