"""Trace a model by running a skeleton of it, in both modes."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from rewriter.errors import TraceError
from rewriter.model.collector import collector_paused
from rewriter.model.random_state import random_state_seeded
from rewriter.model.state import state_kept
from rewriter.model.surroundings import surroundings_kept
from rewriter.tracing.caches import forget_meta_tensors
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.drawing import draw
from rewriter.tracing.facts import facts
from rewriter.tracing.failure import explained, own_tensor_reached, unstarted_result
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.kinds import Kind
from rewriter.tracing.known_values import KnownValues
from rewriter.tracing.made_in_forward import made_in_forward
from rewriter.tracing.memory import storage_of
from rewriter.tracing.module_call import ModuleCall
from rewriter.tracing.recorder import ForbiddenTensor, Recorder
from rewriter.tracing.skeleton import meta_twin, skeleton


@dataclass(eq=False)
class Recording:
    """One run of the model in one mode: the graph, the module calls and the structure of the result.

    ``written`` names the parameters that forward wrote to; ``kept`` holds the tensors that outlive the run, with the
    model attribute that holds each ("" for none).
    """

    graph: fx.Graph
    calls: list[ModuleCall]
    training: bool
    result: Any
    written: frozenset[str] = frozenset()
    kept: Mapping[fx.Node, str] = field(default_factory=dict)

    @cached_property
    def dataflow(self) -> Dataflow:
        """The graph as analysed by passes; computed once and shared by all of them."""
        return Dataflow(self.graph)


@dataclass(eq=False)
class Trace:
    """The result of tracing a model: one recording per mode.

    Attributes:
        model: the traced model; it was not changed.
        inputs: what it was run on.
        train: the recording in training mode; ``eval`` is the one in evaluation mode.
        backend: the device of the run's tensors, ``"meta"`` or ``"cpu"``.
        notes: why the earlier backends could not be used.
        may_measure: whether the model can be run again as it was recorded; False if a condition was forced.
        measured: measurements by passes, under keys of their choice. Shared by the recordings of one planning: of the
            unchanged model, of other paths through its code, and of the edited model.
    """

    model: nn.Module
    inputs: Inputs
    train: Recording
    eval: Recording
    backend: str
    notes: tuple[str, ...] = ()
    may_measure: bool = True
    measured: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The flat graph of the model's current mode.

        Every node's ``meta`` carries ``kind``, ``shape``, ``dtype``, ``module_path``, ``module_stack`` and ``owner``.
        """
        return (self.train if self.model.training else self.eval).graph

    @property
    def flow(self) -> Dataflow:
        """The dataflow of the training run."""
        return self.train.dataflow

    def operations(self, *kinds: Kind) -> Iterator[fx.Node]:
        """The operations of these kinds in the training run that depend on the input, in execution order."""
        return self.train.dataflow.nodes(*kinds)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation calls; None for a function or a tensor method."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def owner_of(self, node: fx.Node) -> nn.Module:
        """The module whose method issues an operation."""
        return self.model.get_submodule(facts(node)["owner"].path)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of the result of an operation."""
        return tuple(facts(node)["shape"])

    @cached_property
    def modes_alike(self) -> bool:
        """Whether both modes run the same operations in the same order, with dropouts active in training mode only."""
        stays_on = any(node.meta.get("active") for node in self.eval.graph.nodes if facts(node)["kind"] is Kind.DROPOUT)
        return not stays_on and _operations(self.train) == _operations(self.eval)

    def draw(self, path: str | Path) -> Path:
        """Draw :attr:`graph` to a file: ``.dot``, or, with Graphviz installed, ``.svg``, ``.png`` or ``.pdf``."""
        return draw(self.graph, path)


def _operations(recording: Recording) -> list[tuple[str, Any, str]]:
    """What depends on the input, since batch norms also count their batches, in training only."""
    return [(node.op, node.target, facts(node)["module_path"]) for node in recording.dataflow.nodes()]


BACKENDS = ("meta", "cpu")
"""The devices that a run's tensors may have, in the order in which they are tried."""


@collector_paused()
def trace_model(
    model: nn.Module, inputs: Inputs, backends: Sequence[str] = BACKENDS, *, modes_alike: bool = False
) -> Trace:
    """Run a skeleton of ``model`` in both modes and record it.

    The run is on meta tensors if the model allows it, else on real CPU tensors with the model's own weights.

    Args:
        model: the model; it is only read.
        inputs: what it is run on.
        backends: which of :data:`BACKENDS` are tried.
        modes_alike: whether both modes are known to run the same operations: one recording then serves both.

    Raises:
        TraceError: the model does not run on ``inputs``, or creates layers while it runs; names the module and the
            source line.
    """
    notes: list[str] = []
    own = frozenset(map(id, (*model.parameters(), *model.buffers())))
    for backend in backends:
        twin, context = _CONTEXTS[backend]
        try:
            # tensors have no version counter in inference mode, so a write would go unnoticed
            with _kept(model, backend), torch.inference_mode(False), context():
                train = _record(model, inputs, twin, own, training=True)
                evaluation = train if modes_alike else _record(model, inputs, twin, own, training=False)
            return Trace(model, inputs, train, evaluation, backend, tuple(notes))
        except _Unfinished as error:
            raise TraceError(str(error)) from None
        except TraceError as error:
            notes.append(f"{backend}: {error}")
            if backend == backends[-1]:
                raise
    raise AssertionError("no backend was given")


@collector_paused()
def trace_candidates(model: nn.Module, candidates: Sequence[Inputs]) -> Trace:
    """Trace on the first of ``candidates`` that the model runs on.

    Raises:
        TraceError: it runs on none of them; the error is that of the last.
    """
    for inputs in candidates[:-1]:
        try:
            return trace_model(model, inputs, backends=BACKENDS[:1])
        except Exception:  # the model takes another number of channels than its configuration says
            continue
    return trace_model(model, candidates[-1])


class _Unfinished(TraceError):
    """A failure that does not depend on the kind of tensors that the model is run on."""


@contextlib.contextmanager
def _kept(model: nn.Module, backend: str) -> Iterator[None]:
    """Preserve what is around the model; on real tensors its own state too, which the skeleton may reach by a global.

    The random state is seeded, so that layers that are skipped at random do not depend on earlier draws.
    """
    with random_state_seeded(0), state_kept(model) if backend == "cpu" else surroundings_kept(model):
        yield


def _record(
    model: nn.Module,
    inputs: Inputs,
    twin: Callable[[torch.Tensor], torch.Tensor],
    own: frozenset[int],
    *,
    training: bool,
) -> Recording:
    values = KnownValues(on_meta=twin is meta_twin)
    copy = skeleton(model, values.noting(twin))
    copy.train(training)
    reference = next(iter(model.parameters()), torch.empty(0))
    twins = inputs.map(lambda t: twin(t.detach()))
    parameters = dict(copy.named_parameters())
    modules = list(copy.modules())
    recorder = Recorder(copy, values=values, real_device=reference.device, forbidden=own)
    try:
        result = recorder.run(twins.args, twins.kwargs)
    except ForbiddenTensor as error:
        raise _Unfinished(own_tensor_reached(model, error.args[0])) from None
    except Exception as error:
        raise explained(error, recorder.failed_in, model, inputs.origin, training) from error
    if isinstance(result, (types.GeneratorType, types.CoroutineType)):
        result.close()
    if (unstarted := unstarted_result(model, result)) is not None:
        raise TraceError(unstarted)
    made = made_in_forward(model, copy, modules, parameters.values())
    if made is not None:
        raise _Unfinished(made)
    written = frozenset(
        name
        for name, parameter in parameters.items()
        if parameter._version > 0 or storage_of(parameter) in recorder.written  # through .data
    )
    return Recording(recorder.graph, recorder.calls, training, result, written, recorder.kept)


@contextlib.contextmanager
def _meta_context() -> Iterator[None]:
    with torch.device("meta"):
        yield


@contextlib.contextmanager
def _cpu_context() -> Iterator[None]:
    forget_meta_tensors()  # left by the run that failed
    yield


def _cpu_twin(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "meta":
        real = torch.zeros(tensor.shape, dtype=tensor.dtype)
    else:
        real = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(real, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else real


_CONTEXTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Any]] = {
    "meta": (meta_twin, _meta_context),
    "cpu": (_cpu_twin, _cpu_context),
}
