"""Forward hooks that are part of a model, not of its user.

Libraries collect intermediate results by hooks that they put on their own modules: transformers does for
``output_hidden_states``, which its segmentation and depth heads read. A trace never calls the user's hooks, but it
cannot do without these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def has_library_hooks(model: nn.Module) -> bool:
    """Whether a module of ``model`` carries a forward hook that the library of its class defines."""
    return any(is_library_hook(module, hook) for module in model.modules() for hook in module._forward_hooks.values())


def is_library_hook(module: nn.Module, hook: Callable[..., Any]) -> bool:
    """Whether ``hook`` comes from the package that the class of ``module`` comes from."""
    package = (getattr(hook, "__module__", None) or "").partition(".")[0]
    return package in {cls.__module__.partition(".")[0] for cls in type(module).__mro__} - {"torch", "builtins"}


def call_forward_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """What the forward hooks of ``module`` make of its ``result``."""
    for key, hook in module._forward_hooks.items():
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = hook(module, *given, result)
        result = result if changed is None else changed
    return result
