"""The windows of an average pooling: their size, and whether one covers the whole map."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

_ARGUMENTS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_DEFAULTS = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def pooling_arguments(node: fx.Node, model: nn.Module) -> dict[str, Any]:
    """The arguments of a local pooling, from the module or the call; without ``kernel_size`` for an adaptive one."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None and not hasattr(module, "function"):
        given = {name: getattr(module, name) for name in _ARGUMENTS if hasattr(module, name)}
    else:
        name = getattr(module, "function", getattr(node.target, "__name__", ""))
        given = {} if "adaptive" in name else dict(zip(_ARGUMENTS, node.args[1:], strict=False)) | dict(node.kwargs)
    if given.get("stride", ()) in (None, ()):
        given["stride"] = given.get("kernel_size")
    return {**_DEFAULTS, **given} if given.get("kernel_size") is not None else {}


def spatial_dims_of(node: fx.Node, model: nn.Module) -> int:
    """1, 2 or 3, according to the name of the function, or of the module's base class."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    names = [getattr(module, "function", getattr(node.target, "__name__", ""))]
    names += [cls.__name__ for cls in type(module).__mro__ if cls.__module__ == "torch.nn.modules.pooling"]
    return next(int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d"))


def per_dim(size: Any, spatial_dims: int) -> tuple[Any, ...]:
    """Expand a size as pooling layers take it, one number or one per dimension, to one per dimension."""
    given = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    return given * spatial_dims if len(given) == 1 else given


def covers_map(node: fx.Node, before: tuple[int, ...], after: tuple[int, ...], model: nn.Module) -> bool:
    """Whether a pooling from shape ``before`` to shape ``after`` averages the whole map into one value."""
    arguments, dims = pooling_arguments(node, model), spatial_dims_of(node, model)
    if any(size != 1 for size in after[-dims:]):
        return False
    if "kernel_size" not in arguments:  # adaptive
        return True
    kernel, padding = (per_dim(arguments[name], dims) for name in ("kernel_size", "padding"))
    return all(k >= size + p for k, size, p in zip(kernel, before[-dims:], padding, strict=True))
