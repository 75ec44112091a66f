"""Settings that weights do not hold, as JSON: drop rates, modes, frozen parameters, memory formats and dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from rewriter.edit.edits import AddBehaviour, AddModule
from rewriter.model.wrappers import named_modules_inside
from rewriter.planning.record import records_in_force

_RATES = ("p", "drop_rate")


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the settings of ``model``, ready for JSON."""
    modules = dict(named_modules_inside(model))
    tensors = _named_tensors(model)
    saved = model.state_dict(keep_vars=True)
    rates: dict[str, dict[str, float]] = {name: {} for name in _RATES}
    for path, module in modules.items():
        if isinstance(module, _DropoutNd) and _is_rate(module.p):
            rates["p"][path] = module.p
        if _is_rate(module.__dict__.get("drop_rate")):
            rates["drop_rate"][path] = module.__dict__["drop_rate"]
    return {
        "rates": rates,
        "options": {path: {name: getattr(modules[path], name) for name in names} for path, names in _options(model)},
        "training": model.training,
        "in_other_mode": [path for path, module in modules.items() if module.training != model.training],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "memory_order": {key: order for key, tensor in tensors.items() if (order := _memory_order(tensor)) is not None},
        "types": {key: str(t.dtype).removeprefix("torch.") for key, t in tensors.items() if key not in saved},
    }


def restore_types(model: nn.Module, state: Mapping[str, torch.Tensor], recipe: Mapping[str, Any]) -> None:
    """Give every tensor the dtype and memory format that it was saved with, so that its bits fit."""
    for key, tensor in _named_tensors(model).items():
        dtype = state[key].dtype if key in state else getattr(torch, recipe["types"].get(key, ""), tensor.dtype)
        order = recipe["memory_order"].get(key)
        if dtype != tensor.dtype or order != _memory_order(tensor):
            order = list(range(tensor.dim())) if order is None else order
            changed = torch.empty_permuted(tuple(tensor.shape), order, dtype=dtype, device=tensor.device)
            tensor.data = changed.copy_(tensor.detach())


def restore_settings(model: nn.Module, recipe: Mapping[str, Any]) -> None:
    """Restore rates, options, modes and frozen parameters of ``model`` from :func:`settings_of`.

    Raises:
        ValueError, KeyError, AttributeError: they are from another model.
    """
    modules = dict(named_modules_inside(model))
    for name in _RATES:
        for path, rate in recipe["rates"][name].items():
            if not _is_rate(rate) or not hasattr(modules[path], name):
                raise ValueError(f"rate {name}={rate!r} of {path!r}")
            setattr(modules[path], name, rate)
    known = dict(_options(model))
    for path, values in recipe["options"].items():
        if not set(values) <= known.get(path, set()):
            raise ValueError(f"options {values!r} of {path!r}")
        for name, value in values.items():
            setattr(modules[path], name, value)
    other = set(recipe["in_other_mode"])
    training = recipe["training"]
    if not isinstance(training, bool) or not other <= set(modules):
        raise ValueError("training mode")
    for path, module in modules.items():
        module.training = training != (path in other)
    frozen = set(recipe["frozen"])
    parameters = dict(model.named_parameters())
    if not frozen <= set(parameters):
        raise ValueError("frozen parameters")
    for name, parameter in parameters.items():
        if parameter.requires_grad == (name in frozen):
            parameter.requires_grad_(name not in frozen)


def _options(model: nn.Module) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of the hyperparameters that rewrites gave to modules, by module path."""
    modules = dict(named_modules_inside(model))
    for record in records_in_force(model):
        for edit in record.applied.edits:
            if isinstance(edit, AddBehaviour):
                path, names = edit.path, set(edit.options)
            elif isinstance(edit, AddModule):
                path, names = f"{edit.path}.{edit.name}".lstrip("."), set(edit.options)
            else:
                continue
            if names and path in modules:
                own = {name: getattr(modules[path], name) for name in names if hasattr(modules[path], name)}
                yield path, {name for name, value in own.items() if not isinstance(value, torch.Tensor)}


def _named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _memory_order(tensor: torch.Tensor) -> list[int] | None:
    """Return the dimensions of a dense tensor from slowest to fastest; None for the default order."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dimension: -strides[dimension])
    return order if tensor.permute(order).is_contiguous() else None


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1
