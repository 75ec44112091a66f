"""Convert extra state of modules (``get_extra_state``) to JSON, which is read without running code, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rewriter.errors import StorageError, listed

_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "set": set}


def extra_state_to_store(model: nn.Module) -> dict[str, Any]:
    """Return the non-tensor entries of the state dict, ready for JSON, by key.

    Raises:
        StorageError: they are not plain data, and nothing else can be read back without running code.
    """
    extra = {key: value for key, value in model.state_dict().items() if not isinstance(value, torch.Tensor)}
    try:
        return {key: _as_json(value, key) for key, value in extra.items()}
    except RecursionError:
        raise StorageError(f"extra state ({listed(extra)}) contains itself; it cannot be stored") from None


def stored_extra_state(found: Any) -> dict[str, Any]:
    """Return what was given to :func:`extra_state_to_store`.

    Raises:
        ValueError: it does not have the expected form.
    """
    if not isinstance(found, dict):
        raise ValueError("extra_state")
    return {key: _from_json(value) for key, value in found.items()}


def _as_json(value: Any, key: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind is dict:
        return {"dict": [[_as_json(name, key), _as_json(item, key)] for name, item in value.items()]}
    if kind in (list, tuple, set):
        return {kind.__name__: [_as_json(item, key) for item in value]}
    raise StorageError(
        f"extra state {key!r} holds a {kind.__module__}.{kind.__qualname__}; only tensors and plain data (numbers, "
        "texts, None, and lists, tuples, sets and dicts of them) can be stored without code. "
        "Let get_extra_state return such data, or use torch.save."
    )


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError(f"extra state {value!r}")
        return value
    ((kind, items),) = value.items()
    if kind == "float":
        return float(items)
    if kind == "dict":
        return {_from_json(name): _from_json(item) for name, item in items}
    if kind not in _CONTAINERS:
        raise ValueError(f"extra state of the kind {kind!r}")
    return _CONTAINERS[kind]([_from_json(item) for item in items])
