"""Preserve a model's state while it runs: nothing that its forward writes, replaces, adds or draws remains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from rewriter.model.mutable_state import MutableState
from rewriter.model.surroundings import surroundings_kept


@contextlib.contextmanager
def state_kept(model: nn.Module, parameters: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Context manager after which the model, and everything it holds, is as it was.

    This covers which parameters, buffers, modules, hooks and plain attributes every module has; the values of buffers,
    of other tensors in attributes, and of the given ``parameters``; gradients and modes; lists, dicts, sets and objects
    in attributes, including random generators; and attributes of the model's classes and globals beside them.
    """
    state = MutableState()
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter in parameters:
        state.note_values(parameter)
    for parameter, _ in gradients:
        state.note_place(parameter)
    state.note(model)
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with surroundings_kept(model):
            yield
    finally:
        state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


def saved_tensors(model: nn.Module) -> dict[str, torch.Size | None]:
    """Shapes of the entries of the model's state dict; None for extra state that is not a tensor."""
    state = model.state_dict(keep_vars=True)
    return {key: value.shape if isinstance(value, torch.Tensor) else None for key, value in state.items()}
