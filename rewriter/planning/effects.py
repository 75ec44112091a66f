"""Whether an edit of a module takes effect: does its behaviour run, does its forward read the attribute?

A ``forward`` set on the instance takes precedence over every class, as accelerate's hooks do; a subclass of a layer may
compute with numbers of its own. Neither shows in a recording, which takes a torch layer as one operation.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rewriter.edit.edits import AddBehaviour, Edit, SetAttribute, find_module
from rewriter.layers.registry import layer_class
from rewriter.model.random_state import random_state_kept
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import function_name, has_own_forward
from rewriter.tracing.skeleton import meta_twin, skeleton
from rewriter.tracing.trace import Trace

_MARK = "_rewriter_watched"
_RAN: contextvars.ContextVar[set[str]] = contextvars.ContextVar("rewriter_behaviours")
"""Where paths are collected; a closure's variables would be copied with the model."""


@contextlib.contextmanager
def behaviours_watched(model: nn.Module, edits: Iterable[Edit]) -> Iterator[set[str]]:
    """Collect the paths of the modules whose behaviour runs; enter the context before the edits are made.

    Args:
        model: a skeleton, whose modules are marked; a copy of it may be run.
        edits: which behaviours, and where.
    """
    ran: set[str] = set()
    added = [edit for edit in edits if isinstance(edit, AddBehaviour)]
    for edit in added:
        find_module(model, edit.path).__dict__[_MARK] = edit.path
    with contextlib.ExitStack() as stack:
        for behaviour in dict.fromkeys(layer_class(edit.behaviour) for edit in added):
            stack.enter_context(_watched(behaviour))
        stack.callback(_RAN.reset, _RAN.set(ran))
        yield ran


@contextlib.contextmanager
def _watched(behaviour: type[nn.Module]) -> Iterator[None]:
    own, original = behaviour.__dict__.get("forward"), behaviour.forward

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _MARK in self.__dict__:
            _RAN.get(set()).add(self.__dict__[_MARK])
        return original(self, *args, **kwargs)

    behaviour.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del behaviour.forward
        else:
            behaviour.forward = own  # type: ignore[method-assign]


def is_read(edit: SetAttribute, model: nn.Module, edited: nn.Module, again: Trace) -> bool:
    """Whether the module computes something else with the new value of the attribute.

    Only modules whose ``forward`` is not torch's own are tested: they are run alone, on their inputs in the recording,
    and the torch calls inside are compared.

    Args:
        edit: which attribute.
        model: the model as given.
        edited: a skeleton of it, with the edits.
        again: the recording of that skeleton.
    """
    module = find_module(model, edit.path)
    if not has_own_forward(module) or getattr(module, edit.name, None) == edit.value:
        return True
    given = _given(edit.path, edited, again)
    copy = skeleton(module, meta_twin)
    before = _calls_inside(copy, given)
    setattr(copy, edit.name, edit.value)
    return before != _calls_inside(copy, given)


def _given(path: str, model: nn.Module, again: Trace) -> tuple[tuple[Any, ...], dict[str, Any]]:
    module = find_module(model, path)
    paths = {path for path, other in model.named_modules(remove_duplicate=False) if other is module}
    for node in again.train.graph.nodes:
        if node.op == "call_module" and node.target in paths:
            return _tensors(node.args), _tensors(node.kwargs)
    call = next((call for call in again.train.calls if call.path in paths), None)
    return (tuple(map(_tensors, call.arguments)) if call is not None else ()), {}


def _tensors(given: Any) -> Any:
    """Return ``given`` with each node replaced by a tensor of the same shape and dtype."""
    return fx.map_arg(given, lambda node: torch.empty(facts(node)["shape"], dtype=facts(node)["dtype"], device="meta"))


def _calls_inside(module: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    """Return every torch call that a module makes, and the error that ends them, if any."""
    calls = _Calls()
    with random_state_kept(), torch.no_grad(), calls:
        try:
            module.forward(*given[0], **given[1])
        except Exception as error:
            calls.made.append(f"{type(error).__name__}: {error}")
    return calls.made


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made.append((function_name(func), _described(args), _described(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    return repr(value)
