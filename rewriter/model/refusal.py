"""Which objects can be rewritten, and what to recommend for one that cannot."""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from rewriter.errors import ModelError
from rewriter.model.whole_state import is_offloaded

_ORDER = (
    "Rewrite first, then compile and wrap. Build the optimizer last, for fully_shard replaces parameters: on "
    "rewriter.param_groups(model)."
)

_FLAT = "_flat_param"
"""The parameter into which FSDP1 flattens those of the module inside, without use_orig_params=True."""


def check_model(model: Any, *, may_be_wrapped: bool = False, may_be_offloaded: bool = False) -> None:
    """Refuse anything but a plain, initialised ``nn.Module``.

    Args:
        model: what was passed as a model.
        may_be_wrapped: whether to accept ``model.compile()`` in place and activation checkpointing, which do not affect
            what is asked of the model.
        may_be_offloaded: whether the model need not run, so that its values may be elsewhere.

    Raises:
        ModelError: says how to unwrap it, and at which point of a script to rewrite.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(f"expected a model, found the class {model.__name__}; call it first: {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, found {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(f"the model is a {type(model).__name__}: its Python code is gone. Rewrite, then script it.")
    of_classes: dict[type, str | None] = {}
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        name = type(module).__name__
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise ModelError(f"{where} is wrapped in {name}; give its .module instead. {_ORDER}")
        if hasattr(module, "_orig_mod"):
            raise ModelError(f"{where} was compiled by torch.compile(); give its ._orig_mod instead. {_ORDER}")
        if isinstance(module, AveragedModel) and not path:
            raise ModelError(f"{where} is wrapped in {name}; give its .module instead. {_ORDER}")
        if "_checkpoint_wrapped_module" in module._modules and not may_be_wrapped:
            raise ModelError(f"{where} is wrapped in {name} for activation checkpointing. {_ORDER}")
        if getattr(module, "_compiled_call_impl", None) is not None and not may_be_wrapped:
            raise ModelError(f"{where} was compiled in place by .compile(). {_ORDER}")
        if (compiled := _compiled_method(module, of_classes)) is not None:
            raise ModelError(
                f"{where}: {compiled}() of {name} was compiled by torch.compile, so that its Python code does not run "
                f"as it is written. Take torch.compile off the class and compile the rewritten model. {_ORDER}"
            )
        if _is_fsdp(module) or _FLAT in module._parameters:
            groups = " Groups that were made before FSDP(model, use_orig_params=True) hold after it." * may_be_wrapped
            raise ModelError(f"{where} is sharded by FSDP, its parameters are not whole. {_ORDER}{groups}")
        if is_offloaded(module) and not may_be_offloaded:
            raise ModelError(
                f"{where} was offloaded by accelerate, its weights are elsewhere between calls. Rewrite first, then "
                "offload; accelerate.hooks.remove_hook_from_submodules(model) brings them back"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{where} is a {name}: its Python code is gone. Rewrite, then script it.")
        for tensor_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if is_lazy(tensor):
                raise ModelError(
                    f"{where}: {tensor_name!r} of the lazy {name} is not initialised yet. "
                    "Run the model once on an input, then rewrite."
                )


_COMPILED = "_torchdynamo_orig_callable"
"""The attribute that torch.compile sets on a function that it compiled."""


def _compiled_method(module: nn.Module, of_classes: dict[type, str | None]) -> str | None:
    """The name of a compiled method of the object or of its class; None if there is none."""
    cls = type(module)
    if cls not in of_classes:
        bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
        of_classes[cls] = next((n for base in bases for n, value in vars(base).items() if is_compiled(value)), None)
    own = (name for name, value in vars(module).items() if name != "_compiled_call_impl" and is_compiled(value))
    return next(own, of_classes[cls])


def is_compiled(value: Any) -> bool:
    """Whether ``value`` is a function, or method, that torch.compile made."""
    if type(value) in weakref.ProxyTypes:  # its referent may no longer exist
        return False
    function = getattr(value, "__func__", value)
    found = function.__dict__ if isinstance(function, types.FunctionType) else {}
    return _COMPILED in found and not found.get("_torchdynamo_disable")


def _is_fsdp(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("torch.distributed.fsdp") for cls in type(module).__mro__)
