"""Record one run of a model as a flat ``torch.fx.Graph``.

The model runs as Python runs it; every torch call passes through a ``TorchFunctionMode`` and every module call through
a wrapper on the instances of the skeleton. Nothing global is patched, so other threads and models are unaffected.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rewriter.model.contents import contents, tensors_held
from rewriter.model.held_by_functions import held_tensors
from rewriter.model.hooks import between_hooks, call_hooked
from rewriter.model.surroundings import functions_of_classes
from rewriter.tracing import shapes
from rewriter.tracing.caches import forget_meta_tensors
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Frame, FrameReader, owner_of
from rewriter.tracing.kinds import Kind, function_kind, has_own_forward, is_active_dropout, module_kind
from rewriter.tracing.known_values import KnownValues
from rewriter.tracing.memory import named_tensors, storage_of
from rewriter.tracing.module_call import ModuleCall

_torch_unobserved = torch._C.DisableTorchFunction
"""Inside it, reading a tensor's shape or base is not recorded as an operation of the model."""


class ForbiddenTensor(Exception):
    """The skeleton was about to use a forbidden tensor, which is the first argument."""


class Recorder(TorchFunctionMode):
    """Runs a skeleton once and records it as :attr:`graph`.

    Args:
        model: the skeleton.
        values: known values of meta tensors.
        real_device: the device that the meta device stands for.
        forbidden: identities of tensors that no operation may use.

    Attributes:
        written: memory that operations wrote to, as identified by :func:`storage_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        values: KnownValues,
        real_device: torch.device,
        forbidden: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.calls: list[ModuleCall] = []
        self.kept: dict[fx.Node, str] = {}
        self.failed_in: str | None = None
        self.written: set[int] = set()
        self._instrumented: list[nn.Module] = []
        self._model = model
        self._values = values
        self._forbidden = forbidden
        self._real_device = real_device
        self._paused = False
        self._drops = False  # whether the dropout that is running has called an active one
        self._nodes: dict[int, fx.Node] = {}
        self._writers: dict[int, fx.Node] = {}  # for tensors whose memory was written to since they were last read
        self._sharing: dict[int, set[int]] = {}  # the tensors in each storage
        self._stack: list[ModuleCall] = []
        self._entered: dict[ModuleCall, tuple[fx.Node | None, list[fx.Node]]] = {}
        paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
        self._frames = FrameReader(paths, self._known)
        self._outside = {id(tensor): tensor for tensor in held_tensors(model, functions_of_classes(model))}
        attributes = list(named_tensors(model))
        self._attributes = {id(tensor): name for name, tensor in attributes}
        self._alive = [tensor for _, tensor in attributes]  # keeps their ids from being reused

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model once and record the call; return what the model returned.

        Afterwards :attr:`kept` holds the last state of every tensor that outlives the call, and the attribute that
        holds it ("" for none: the result, a list, a closure).
        """
        self._instrument()
        for index, value in enumerate(args):
            self._placeholder(f"input_{index}", value)
        for name, value in kwargs.items():
            self._placeholder(name, value)
        try:
            with torch.no_grad(), self:
                result = self._model(*args, **kwargs)
            output = self.graph.output(self._returned(result))
            self._describe(output, Kind.OUTPUT, (), result)
            self._release(result)
        finally:  # frames keep everything alive that was alive while the model ran
            self._frames.clear()
            self._alive.clear()
            self._stack.clear()
            for module in self._instrumented:  # the wrappers hold the recorder, and it the skeleton with its memory
                for name in ("forward", "_compiled_call_impl"):
                    module.__dict__.pop(name, None)
            self._instrumented.clear()
            self._outside.clear()
            self._values.clear()
            del self._model
        return result

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or not self._stack:
            self._drops |= (
                self._paused and function_kind(func) is Kind.DROPOUT and is_active_dropout(func, args, kwargs)
            )
            return self._values.call(func, args, kwargs)
        with _torch_unobserved():
            inputs = list(tensors_in((args, kwargs)))
            versions = [t._version for t in inputs]
            for tensor in inputs:
                if id(tensor) in self._forbidden:
                    raise ForbiddenTensor(tensor)
        result = self._values.call(func, args, kwargs)
        changed = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]
        if not changed and not any(True for _ in tensors_in(result)):
            return result
        if isinstance(result, torch.Tensor) and any(result is t for t in inputs) and not changed:
            result = result.detach()  # a no-op returns its input; give the result an identity of its own
        with _torch_unobserved():
            node = self._call_function(func, args, kwargs)
            self._describe(node, kind := function_kind(func), self._frames.read(sys._getframe(1)), result)
            facts(node)["active"] = kind is Kind.DROPOUT and is_active_dropout(func, args, kwargs)
            self._write(changed, node)
            self._bind(result, node)
        return result

    def _instrument(self) -> None:
        """Put a wrapper on every module of the skeleton; global hooks and compiled calls are thereby bypassed."""
        for path, module in self._model.named_modules():
            self._instrumented.append(module)
            kind = module_kind(module)
            original = module.forward
            wrapper = self._leaf(path, module, kind, original) if kind else self._inner(path, original)
            self._frames.boundaries.add(wrapper.__code__)  # type: ignore[attr-defined]
            module.__dict__["forward"] = wrapper
            module.__dict__["_compiled_call_impl"] = called = between_hooks(module, wrapper)
            self._frames.machinery.update((called.__code__, call_hooked.__code__))  # type: ignore[attr-defined]

    def _inner(self, path: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call_module(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return original(*args, **kwargs)
            with _torch_unobserved():
                parent = self._stack[-1] if self._stack else None
                frames = self._frames.read(sys._getframe(1)) if parent else ()
                call = ModuleCall(path, parent, frames, tuple(self._maybe_node(a) for a in args))
                self._enter(call, (args, kwargs))
            self.calls.append(call)
            try:
                result = original(*args, **kwargs)
                with _torch_unobserved():
                    held = [result] if isinstance(result, torch.Tensor) else tensors_held(result)
                    call.outputs = [self._node(t) for t in held]
            except Exception:
                self.failed_in = self.failed_in or path
                raise
            finally:
                self._stack.pop()
            return result

        return call_module

    def _leaf(self, path: str, module: nn.Module, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        predictable = self._values.on_meta and not (kind is Kind.DROPOUT and has_own_forward(module))

        def call_leaf(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return original(*args, **kwargs)
            root = not self._stack  # the model itself is a leaf
            if root:
                self._enter(ModuleCall("", None, (), ()), (args, kwargs))
            with _torch_unobserved():
                nodes = self._arguments(args), self._arguments(kwargs)
                inputs = list(tensors_in((args, kwargs)))
                versions = [t._version for t in inputs]
            self._paused, self._drops = True, kind is Kind.DROPOUT and module.training
            try:
                result = None
                if predictable and len(args) == 1 and isinstance(args[0], torch.Tensor) and not kwargs:
                    with _torch_unobserved():
                        result = shapes.predict_module(module, kind, args[0])
                if result is not None:
                    changed = [result] if result is args[0] else []
                else:
                    result = original(*args, **kwargs)
                    changed = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]
                if any(result is t for t in inputs) and not changed:
                    result = result.detach()
            except Exception:
                self.failed_in = self.failed_in or path
                raise
            finally:
                self._paused = False
            with _torch_unobserved():
                node = self.graph.create_node("call_module", path, *nodes)
                self._describe(node, kind, self._frames.read(sys._getframe(1)), result)
                facts(node)["active"] = self._drops
                self._write(changed, node)
                self._bind(result, node)
            if root:
                self._stack.pop()
            return result

        return call_leaf

    def _enter(self, call: ModuleCall, given: Any) -> None:
        received = [self._node(t) for t in tensors_in(given)]  # tensors not seen yet were created outside the call
        self._entered[call] = next(reversed(self.graph.nodes), None), received
        self._stack.append(call)

    def _call_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        if getattr(func, "__name__", "") == "__get__":  # x.T, x.mT, x.real
            return self.graph.call_function(getattr, (self._node(args[0]), func.__self__.__name__))
        return self.graph.call_function(func, self._arguments(args), self._arguments(kwargs))

    def _placeholder(self, name: str, value: Any) -> None:
        node = self.graph.placeholder(name)
        self._describe(node, Kind.INPUT, (), value)
        self._bind(value, node)

    def _describe(self, node: fx.Node, kind: Kind, frames: tuple[Frame, ...], result: Any) -> None:
        self._describe_in(self._stack[-1] if self._stack else None, node, kind, frames, result)

    def _describe_in(
        self, call: ModuleCall | None, node: fx.Node, kind: Kind, frames: tuple[Frame, ...], result: Any
    ) -> None:
        path = call.path if call else ""
        first = next(tensors_in(result), None)
        node.meta.update(
            kind=kind,
            shape=tuple(first.shape) if first is not None and not first.is_nested else None,
            dtype=first.dtype if first is not None else None,
            module_path=str(node.target) if node.op == "call_module" else path,
            module_stack=tuple(c.path for c in reversed(list(call.chain()))) if call else (),
            owner=owner_of(frames, path),
            frames=frames,
            call=call,
            after=(),
            storage=None,
            writes=frozenset(),
            active=False,
        )

    def _bind(self, value: Any, node: fx.Node) -> None:
        """Record ``node`` as the source of the tensors in ``value``."""
        if isinstance(value, torch.Tensor):
            self._nodes[id(value)] = node
            self._writers.pop(id(value), None)
            self._alive.append(value)
            facts(node)["storage"] = storage = storage_of(value)
            self._sharing.setdefault(storage, set()).add(id(value))
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                if any(True for _ in tensors_in(item)):
                    element = self.graph.call_function(operator.getitem, (node, key))
                    self._describe(element, Kind.SELECT, facts(node)["frames"], item)
                    self._bind(item, element)

    def _write(self, changed: list[torch.Tensor], node: fx.Node) -> None:
        """Record that ``node`` wrote to the memory of ``changed``: later reads of tensors in it depend on ``node``."""
        facts(node)["writes"] = frozenset(map(storage_of, changed))
        self.written |= facts(node)["writes"]
        for storage in facts(node)["writes"]:
            for sharing in self._sharing.get(storage, ()):
                self._writers[sharing] = node
                self._values.forget(sharing)

    def _known(self, value: object) -> fx.Node | None:
        """The node that ``value`` comes from; None if it is not a tensor that was recorded."""
        node, writer = self._nodes.get(id(value)), self._writers.pop(id(value), None)
        if node is None or writer is None:
            return node
        alias = self.graph.call_function(torch.Tensor.view_as, (node, node))
        self._describe_in(facts(writer)["call"], alias, Kind.IDENTITY, facts(writer)["frames"], value)
        alias.meta.update(after=(writer,), storage=facts(node)["storage"])
        self._nodes[id(value)] = alias
        return alias

    def _release(self, result: Any) -> None:
        """Release all tensors, and record in :attr:`kept` those that are still held elsewhere."""
        attributes = {id(tensor): name for name, tensor in named_tensors(self._model)}
        returned = {storage_of(tensor) for tensor in tensors_held(result)}
        states = [
            (
                weakref.ref(tensor),
                self._writers.get(id(tensor)) or self._nodes[id(tensor)],
                attributes.get(id(tensor)),
                self._nodes[id(tensor)].op in ("placeholder", "get_attr")
                or id(tensor) in self._outside
                or storage_of(tensor) in returned,
            )
            for tensor in self._alive
            if id(tensor) in self._nodes
        ]
        self._frames.clear()
        self._alive.clear()
        self._values.clear()
        if any(reference() is not None and not expected for reference, _, _, expected in states):
            # a caught error may leave a cycle through its frames and their local variables; it is young, as
            # the collector is paused while a model is traced
            gc.collect(0)
            if any(r() is not None and not expected and attribute is None for r, _, attribute, expected in states):
                forget_meta_tensors()
        for reference, node, attribute, _ in states:
            if reference() is not None and (attribute is not None or node not in self.kept):
                self.kept[node] = attribute or ""

    def _maybe_node(self, value: Any) -> fx.Node | None:
        return self._node(value) if isinstance(value, torch.Tensor) else None

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        node = self._known(tensor)
        if node is None:
            name = self._attributes.get(id(tensor))
            if name is not None:
                node = self.graph.create_node("get_attr", name)
                self._describe(node, Kind.CONSTANT, (), tensor)
            elif id(tensor) in self._outside:  # it was there before, and a function of the model holds it
                node = self._unseen((), tensor)
            else:  # created where no torch call was seen: numpy, a scripted function, an autograd.Function
                node = self._opaque(tensor)
            self._bind(tensor, node)
        return node

    def _opaque(self, tensor: torch.Tensor) -> fx.Node:
        """A node for unobserved code: it may have read its module's inputs, and results that nothing else read."""
        call = self._stack[-1] if self._stack else None
        start, received = self._entered[call] if call else (None, [])
        unread = []
        for node in reversed(self.graph.nodes):
            if node is start:
                break
            if node.op in ("call_function", "call_module") and not node.users:
                unread.append(node)
        return self._unseen(tuple(dict.fromkeys([*received, *reversed(unread)])), tensor)

    def _unseen(self, sources: tuple[fx.Node, ...], tensor: torch.Tensor) -> fx.Node:
        opaque = self.graph.call_function(unseen, sources)
        self._describe(opaque, Kind.OPAQUE, (), tensor)
        return opaque

    def _returned(self, result: Any) -> Any:
        """What the model returned; if tensors are inside objects, a dict from the path to each tensor."""
        held = [content for content in contents(result) if isinstance(content.value, torch.Tensor)]
        if len(held) == sum(1 for _ in tensors_in(result)):
            with contextlib.suppress(RecursionError):  # it contains itself, or is nested thousands deep
                return self._arguments(result)
        return {content.path: self._node(content.value) for content in held}

    def _arguments(self, value: Any) -> Any:
        """``value`` with tensors replaced by their nodes."""
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, (tuple, list)):
            kind = type(value) if type(value) in (tuple, list) else tuple
            return kind(self._arguments(v) for v in value)
        if isinstance(value, dict):
            return {str(k): self._arguments(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*(self._arguments(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, torch.device) and value.type == "meta":
            return self._real_device
        return value


def unseen(*sources: Any) -> Any:
    """A placeholder in a graph for code that torch could not observe; it cannot be run."""
    raise RuntimeError("this part of the model runs outside torch's sight and is not part of the graph")
