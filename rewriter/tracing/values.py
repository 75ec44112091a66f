"""Run a recording again on real values, for passes that decide by the contents of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rewriter.errors import RewriterError, TraceError
from rewriter.model.hooks import between_hooks
from rewriter.model.random_state import random_state_seeded
from rewriter.model.surroundings import surroundings_kept
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.facts import facts
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.kinds import Kind, function_kind, module_kind
from rewriter.tracing.skeleton import skeleton
from rewriter.tracing.trace import Trace

Watch = Callable[[fx.Node, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Gets an operation, and a torch function that implements it with its arguments; returns what the function would."""


def has_values(trace: Trace) -> bool:
    """Whether the model's parameters and buffers, and the inputs of the trace, all have values."""
    tensors = (*trace.model.parameters(), *trace.model.buffers(), *tensors_in((trace.inputs.args, trace.inputs.kwargs)))
    return not any(tensor.device.type == "meta" for tensor in tensors)


def run_on_values(trace: Trace, kinds: frozenset[Kind], watch: Watch, inputs: Inputs | None = None) -> None:
    """Run the model in evaluation mode on its own weights, see :func:`run_with`.

    Parameters are shared with the model, except the few that forward writes to; buffers are copied. So weights take no
    extra memory.

    Args:
        trace: a trace for which :func:`has_values` is true.
        kinds, watch: see :func:`run_with`.
        inputs: what it is run on, with the shapes of the traced inputs; by default those.

    Raises:
        TraceError: see :func:`run_with`.
    """
    parameters = dict(trace.model.named_parameters(remove_duplicate=False))
    written = {id(parameters[name]) for name in (*trace.eval.written, *trace.train.written)}

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach()
        if not isinstance(tensor, nn.Parameter) or id(tensor) in written:
            own = own.clone()
        return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own

    run_with(trace, kinds, watch, twin, (inputs or trace.inputs).map(lambda tensor: tensor.detach().clone()))


def run_with(
    trace: Trace,
    kinds: frozenset[Kind],
    watch: Watch,
    twin: Callable[[torch.Tensor], torch.Tensor],
    inputs: Inputs,
) -> None:
    """Run a skeleton in evaluation mode, and let ``watch`` intercept the operations of ``kinds``.

    ``watch(node, function, args, kwargs)`` is called in place of each torch function that implements an operation of
    ``trace.eval``: the function itself if the operation is one; for a layer, the functions that it calls, with the
    weight as it is used (standardised, parametrized).

    The model, its hooks and the random state are not affected.

    Args:
        trace: the trace to run again.
        kinds: kinds of operation that always return tensors, such as layers with weights and norms.
        watch: see above; a :class:`RewriterError` that it raises ends the run and is passed on.
        twin: makes the skeleton's replacement of each tensor of the model.
        inputs: what it is run on.

    Raises:
        TraceError: the skeleton does not run, or does not run the recorded operations.
    """
    with random_state_seeded(0), surroundings_kept(trace.model), torch.inference_mode(False), torch.no_grad():
        model = skeleton(trace.model, twin).eval()
        try:
            with _Rerun(model, _operations(trace.eval.graph, kinds), kinds, watch):
                model(*inputs.args, **inputs.kwargs)
        except RewriterError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise TraceError(f"{type(error).__name__}: {lines[0] if lines else ''}") from error
        finally:
            for module in model.modules():  # the wrappers hold the skeleton
                for name in _CALLS:
                    module.__dict__.pop(name, None)


_CALLS = ("forward", "_compiled_call_impl")


def _operations(graph: fx.Graph, kinds: frozenset[Kind]) -> Iterator[fx.Node]:
    return (n for n in graph.nodes if n.op in ("call_module", "call_function") and facts(n)["kind"] in kinds)


class _Rerun(TorchFunctionMode):
    """Matches functions to recorded operations, which run in the order in which they were recorded."""

    def __init__(self, model: nn.Module, recorded: Iterator[fx.Node], kinds: frozenset[Kind], watch: Watch) -> None:
        super().__init__()
        self._recorded, self._kinds, self._watch = recorded, kinds, watch
        self._inside_layer = False
        self._layer: fx.Node | None = None
        for path, module in model.named_modules():
            kind = module_kind(module)
            call = module.forward if kind is None else self._of_layer(path, kind, module.forward)
            module.__dict__.update(forward=call, _compiled_call_impl=between_hooks(module, call))

    def _of_layer(self, path: str, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        def call_layer(*args: Any, **kwargs: Any) -> Any:
            if self._inside_layer:
                return original(*args, **kwargs)
            self._inside_layer = True
            self._layer = self._next(path) if kind in self._kinds else None
            try:
                return original(*args, **kwargs)
            finally:
                self._inside_layer, self._layer = False, None

        return call_layer

    def _next(self, target: Any) -> fx.Node:
        node = next(self._recorded, None)
        if node is None or node.target != target:
            raise RuntimeError(f"another operation ran than was recorded: {target}, not {node and node.target}")
        return node

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        node = self._layer
        if not self._inside_layer and function_kind(func) in self._kinds:
            node = self._next(func)
        return func(*args, **kwargs) if node is None else self._watch(node, func, args, kwargs)
