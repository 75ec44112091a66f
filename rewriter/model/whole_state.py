"""The state dict of a wrapped model with all of its values, wherever the wrapper keeps them.

FSDP1 keeps parameters in flat ones, of which each process has a shard; FSDP2 keeps a shard of each parameter. What
accelerate offloads is on the meta device between calls, with the values in a separate map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.model.wrappers import inside, is_flattened


def whole_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict of the model inside ``model``, without the names of wrappers.

    If FSDP shards the model, every process has to call this, and each gets the full state dict.
    """
    if is_flattened(model):  # then torch was built with support for what is imported here
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    module = inside(model)
    state: dict[str, Any] = module.state_dict()
    for path, part in module.named_modules():
        for values in _values_of(part):
            prefix = f"{path}." if path else ""
            for key in [key for key in state if key.startswith(prefix) and _is_meta(state[key])]:
                if key.removeprefix(prefix) in values:
                    state[key] = values[key.removeprefix(prefix)]
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            state[key] = whole_tensor(value)
    return state


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the weights of this module itself elsewhere between calls."""
    return any(True for _ in _values_of(module))


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, as made by ``fully_shard``."""
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, if it is sharded; every process has to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return, attr-defined]


def _values_of(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    """The maps in which accelerate keeps a module's offloaded values, by their names in the module."""
    hook = module.__dict__.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):
        values = getattr(one, "weights_map", None)
        if getattr(one, "offload", False) and isinstance(values, Mapping):
            yield values


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta
