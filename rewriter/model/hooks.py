"""Hooks that are part of a model's computation: those that the library of its classes registers itself.

transformers collects the hidden states for a neck or a decode head with forward hooks, and registers them in the first
forward that needs them; timm's ``FeatureHookNet`` returns what its hooks collect. All other hooks are the user's, and
must not notice that the model is traced; this includes hooks defined beside the model in the user's own package.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

FORWARD = ("_forward_pre_hooks", "_forward_hooks")
"""Registries of hooks that receive, and may change, the inputs and outputs of a module."""

FORWARD_OPTIONS = (
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
"""Registries of the options of such hooks, by the same keys."""

BACKWARD = ("_backward_hooks", "_backward_pre_hooks")

REGISTRIES = (*FORWARD, *FORWARD_OPTIONS, *BACKWARD)


def libraries_of(model: nn.Module) -> frozenset[str | None]:
    """Top-level packages that define the classes of the model's modules, except torch."""
    found = {_package(type(module).__module__) for module in model.modules()}
    return frozenset(package for package in found if package not in (None, "torch"))


def is_of(hook: Any, libraries: frozenset[str | None]) -> bool:
    """Whether the hook's function is defined by one of the installed ``libraries``."""
    function = hook
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    package = _package(getattr(function, "__module__", None))
    return code is not None and package in libraries and _is_installed(package, Path(code.co_filename))


def _is_installed(package: str | None, file: Path) -> bool:
    """Whether a package manager installed ``file`` as a part of ``package``; False for a checkout, wherever it is."""
    folders = [Path(folder) for folder in getattr(sys.modules.get(package or ""), "__path__", ())]
    return any(_is_installed_into(folder.parent) for folder in folders if file.is_relative_to(folder))


@functools.cache
def _is_installed_into(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))


def between_hooks(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function to be called in place of ``module``; the model may register hooks on it while it runs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if module._forward_pre_hooks or module._forward_hooks:
            return call_hooked(module, forward, args, kwargs)
        return forward(*args, **kwargs)

    return call


def call_hooked(module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``forward(*args, **kwargs)`` between the module's own forward hooks, as torch does."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)  # type: ignore[call-arg]
            args, kwargs = (args, kwargs) if changed is None else changed
        elif (changed := hook(module, args)) is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    result = forward(*args, **kwargs)
    for key, hook in list(module._forward_hooks.items()):
        with_kwargs = key in module._forward_hooks_with_kwargs
        changed = hook(module, args, kwargs, result) if with_kwargs else hook(module, args, result)  # type: ignore[arg-type, call-arg]
        result = result if changed is None else changed
    return result


def _package(module: str | None) -> str | None:
    """The top-level package of a dotted module name; None for a script or a single file."""
    package, dot, _ = (module or "").partition(".")
    return package if dot else None
