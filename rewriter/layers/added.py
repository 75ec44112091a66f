"""Layers with parameters or buffers that a pass adds to a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class AddedLayer(nn.Module):
    """Base class of added layers that have parameters or buffers.

    A checkpoint of the original model has no values for them; it loads with ``strict=True`` nevertheless, and they keep
    their values. When a model leaves the meta device, :meth:`reset_parameters` initialises them. Combine this class
    with a torch layer, which has that method: ``class Norm(AddedLayer, nn.LayerNorm)``; or define it.

    Applying a plan moves such a layer to the device of the module around it, casts it to that module's floating-point
    type if it has parameters, and freezes them if all parameters of that module are frozen.
    """

    def reset_parameters(self) -> None:
        """Initialise parameters and buffers, as before training."""
        of_torch = getattr(super(), "reset_parameters", None)
        if of_torch is None:
            raise NotImplementedError(f"{type(self).__name__}.reset_parameters(): set its values of before training")
        of_torch()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> AddedLayer:
        had_values = not _any_on_meta(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not had_values and not _any_on_meta(self):  # to_empty: the memory is uninitialised
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = {name: tensor for name, tensor in _own_tensors(self).items() if f"{prefix}{name}" not in state_dict}
        if own:
            if any(tensor.is_meta for tensor in own.values()):
                device = next((value.device for value in state_dict.values() if isinstance(value, torch.Tensor)), "cpu")
                fresh = copy.deepcopy(self).to_empty(device=device)
                own = {name: tensor for name, tensor in _own_tensors(fresh).items() if name in own}
            kept = {f"{prefix}{name}": tensor.detach() for name, tensor in own.items()}
            state_dict = {**kept, **{key: value for key, value in state_dict.items() if key.startswith(prefix)}}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]


def why_not_added(layer: nn.Module) -> str:
    """Explain which part of a layer has tensors that a checkpoint of the original lacks but needs; empty if none."""
    for path, module in layer.named_modules():
        if not isinstance(module, AddedLayer) and (own := _own_tensors(module)):
            part = f"its {path}, {type(module).__name__}," if path else "it"
            return (
                f"{type(layer).__qualname__}: {part} has {', '.join(own)} of its own and is no AddedLayer, so "
                f"checkpoints of the original would not load; write class {type(module).__name__}(AddedLayer, …)"
            )
    return ""


def _own_tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    """The layer's own tensors, without those of its children, that are in its state dict."""
    buffers = {name: buffer for name, buffer in layer._buffers.items() if name not in layer._non_persistent_buffers_set}
    return {name: tensor for name, tensor in {**layer._parameters, **buffers}.items() if tensor is not None}


def _any_on_meta(layer: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in _own_tensors(layer).values())
