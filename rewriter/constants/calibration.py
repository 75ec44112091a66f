"""Measure, over the user's data, the constants that layers added by passes need.

Layers that depend on other such layers are measured with those in force, so a model with nested fusions takes as many
passes over the data as they are deep.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn

from rewriter.analysis.naming import path_of
from rewriter.analysis.trained_weights import is_trained
from rewriter.constants.batches import Batches
from rewriter.constants.moments import Moments, moments_of
from rewriter.errors import CalibrationError, TraceError
from rewriter.layers.measured import quiet
from rewriter.layers.registry import CalibratedLayer, calibrated_layers
from rewriter.model.adapters import refuse_adapters
from rewriter.model.copying import Model
from rewriter.model.random_state import random_state_kept
from rewriter.model.refusal import check_model
from rewriter.model.state import state_kept
from rewriter.planning.ranks import check_same_weights, several_ranks
from rewriter.planning.report import needs_no_calibration
from rewriter.reporting.progress import progress_bar
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import trace_model

Found = TypeVar("Found")

LOG = logging.getLogger("rewriter")

SMALLEST_STD = 1e-6
"""A map with a smaller standard deviation, absolute or as a share of its mean, is constant and left alone."""

_TOO_FEW = "Expected more than 1 value per channel"
"""The error of torch's batch norms for a batch of one image whose map has one position."""


def calibrate(
    model: Model,
    batches: Iterable[Any],
    max_batches: int | None = None,
    *,
    prepare: Callable[[Any], Any] | None = None,
    progress: bool = True,
    all_ranks: bool = True,
) -> Model:
    """Measure the mean and standard deviation of every input of ``model``'s equalizers, over all ``batches``.

    Run it after :func:`rewriter.rewrite`, on the training data with the training transforms, before training begins.
    Dropout is off. Norms whose running statistics were never updated normalise by the batch, the others as they will
    in training: by the batch too, unless they were put into evaluation mode in a model that is in training mode.
    Buffers, modes, gradients and random state are restored afterwards. Hooks fire. If ``torch.distributed`` is
    initialised, each process contributes its share of the data, and all get the same constants; their weights have to
    be the same.

    Calibrate before averaging the weights (EMA): the average is a copy, and has the constants that the model has at
    that time. One that was made before reports so when it is put into evaluation mode.

    Args:
        model: a rewritten model; its equalizers are changed in place. Existing constants are measured again. One that
            was rewritten without getting an equalizer is returned as it is, with a line in the log ``"rewriter"``.
        batches: a data loader or another iterable of batches, each a tensor, a tuple or list of positional arguments,
            or a dict of keyword arguments; a tensor or a dict is one batch. Parts of a batch that the model does not
            need (targets) are ignored. Batches are moved to the model's device, and tensors in double precision are
            cast to its floating-point dtype. Nested fusions take several passes over them.
        max_batches: maximum number of batches; None for all.
        prepare: turns a batch into the model's input, if it is not that already: a callable that takes a batch and
            returns a tensor, a tuple of positional arguments or a dict of keyword arguments, all of which are passed to
            the model. Images of uint8 need it, since only you know their scale and normalisation.
        progress: show a progress bar if the output is a terminal, in the first process only.
        all_ranks: False measures on the batches of this process alone, if each has a model of its own.

    Returns:
        ``model`` itself.

    Raises:
        CalibrationError: the model was never rewritten, or its equalizers were folded or replaced, or it has no values
            (meta device); there are no batches, or not enough passes over them; ``prepare`` fails, or returns something
            else; images are uint8; the data are constant, or a batch is not finite, or the model does not run on it.
            The model is unchanged, also if anything else ends the calibration: an error in the data loader, Ctrl-C.
        ModelError: the model is wrapped or compiled.
        RewriterError: the weights of another process differ, or it does not make the call.

    Example:
        >>> original = rewriter.zoo.create("zoo:psphead-resnet10t", channels=16).model
        >>> model = rewriter.rewrite(original, "scale-equalizer", input_size=64)
        >>> model = rewriter.calibrate(model, [torch.randn(4, 3, 64, 64)], progress=False)
    """
    check_model(model)
    refuse_adapters(model)
    layers = calibrated_layers(model)
    if not layers and not needs_no_calibration(model):
        raise CalibrationError(
            f"{type(model).__name__} has no layer to calibrate: rewrite it with the pass scale-equalizer first, "
            "again if its layers were replaced; rewriter.plan(model, 'scale-equalizer') says where it applies"
        )
    if any(layer.absorbed is not None for layer in layers.values()):
        raise CalibrationError("the model was folded for export; calibrate the model that it was folded from")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise CalibrationError("the model has tensors on the meta device; load its weights first")
    data = Batches(model, batches, max_batches, prepare)
    if all_ranks:
        check_same_weights(model, "rewriter.calibrate")
    if not layers:
        LOG.info("calibrate: %s was rewritten and has no equalizers: nothing to measure", type(model).__name__)
        return model
    holders = [layer.measured for layer in layers.values()]
    with random_state_kept(), quiet(holders):
        levels = _levels_of_all_ranks(model, data, layers, all_ranks)
        title = f"calibrating, {len(levels)} pass{'es' if len(levels) > 1 else ''} over the data"
        steps = None if data.length is None else data.length * len(levels)
        shown = progress and _is_first_process()
        # the constants are buffers, and restored like all others
        with _as_in_training(model), torch.no_grad(), progress_bar(title, steps, shown=shown) as advance:
            for layer in layers.values():
                layer.set_constants([(0.0, 1.0)] * layer.operands)
            for level in levels:
                moments = _measure(model, data, level, advance, all_ranks)
                for path, layer in level.items():
                    layer.set_constants(_constants(path, moments[path]))
            measured = {path: layer.constants() for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.set_constants(measured[path])
        layer.measured.constants = measured[path]
    return model


def _is_first_process() -> bool:
    """Whether this process reports for all: rank 0 of ``torch.distributed``, or of a job that torchrun launched."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def _levels_of_all_ranks(
    model: nn.Module, data: Batches, layers: Mapping[str, CalibratedLayer], all_ranks: bool
) -> list[dict[str, CalibratedLayer]]:
    problem: Exception | None = None
    levels: list[dict[str, CalibratedLayer]] = []
    try:
        levels = _levels(model, data.first(), layers)
        data.allow_passes(len(levels))
    except Exception as error:
        problem = error
    _of_all_ranks(None, problem, all_ranks)
    return levels


def _levels(
    model: nn.Module, inputs: Inputs, layers: Mapping[str, CalibratedLayer]
) -> list[dict[str, CalibratedLayer]]:
    """Return the layers in the order to measure them in: none depends on one of its own or a later level."""
    try:
        flow = trace_model(model, inputs).eval.dataflow
    except TraceError as error:
        raise CalibrationError(f"the first batch does not fit the model: {error}") from error
    nodes = {path: [n for n in flow.nodes() if facts(n)["owner"].path == path] for path in layers}
    missing = [path for path, found in nodes.items() if not found]
    if missing:
        warnings.warn(
            f"the model does not use {', '.join(missing)} when it is evaluated; it stays the identity", stacklevel=3
        )
    _warn_of_trained_weights(model, flow, [node for found in nodes.values() for node in found])
    depth: dict[str, int] = {}
    reached = {path: flow.in_order(found) for path, found in nodes.items() if found}
    for path in sorted(reached, key=lambda path: flow.position(reached[path][0])):
        before = set().union(*(flow.ancestors(node, since=flow.inputs[0]) for node in reached[path]))
        depth[path] = 1 + max((depth[p] for p in depth if not before.isdisjoint(nodes[p])), default=0)
    numbers = range(1, max(depth.values(), default=0) + 1)
    return [{path: layers[path] for path in depth if depth[path] == number} for number in numbers]


def _warn_of_trained_weights(model: nn.Module, flow: Dataflow, nodes: Sequence[fx.Node]) -> None:
    """Warn that weights trained without the constants do not match them."""
    behind = {user for node in nodes for user in flow.reachable(node) if facts(user)["kind"] is Kind.NORM}
    paths = dict.fromkeys(path_of(node) for node in flow.in_order(behind))
    trained = [path for path in paths if is_trained(model.get_submodule(path))]
    if trained:
        warnings.warn(
            f"{trained[0]} and what else is behind the equalizers carries trained weights, whose output changes: "
            "calibrate before training, and not again after it",
            stacklevel=5,
        )


def _measure(
    model: nn.Module,
    data: Batches,
    layers: Mapping[str, CalibratedLayer],
    advance: Callable[[], None],
    all_ranks: bool,
) -> dict[str, list[Moments]]:
    """Run one pass over the data and return the moments of every input of ``layers``."""
    found = {path: [Moments()] * layer.operands for path, layer in layers.items()}

    def watch(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            maps = [args[0]] if isinstance(args[0], torch.Tensor) else args[0]
            found[path] = [old + moments_of(new) for old, new in zip(found[path], maps, strict=True)]

        return hook

    handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers.items()]
    problem: Exception | None = None
    low, high = math.inf, -math.inf
    try:
        for number, inputs in enumerate(data):
            _run(model, inputs, number)
            for tensor in tensors_in((inputs.args, inputs.kwargs)):
                if tensor.numel() and not tensor.is_complex():
                    low, high = min(low, float(tensor.min())), max(high, float(tensor.max()))
            advance()
        _refuse_constant(low, high)
    except Exception as error:
        problem = error
    finally:
        for handle in handles:
            handle.remove()
    of_ranks = _of_all_ranks(found, problem, all_ranks)
    return {
        path: [sum(parts, Moments()) for parts in zip(*(of_rank[path] for of_rank in of_ranks), strict=True)]
        for path in found
    }


def _refuse_constant(low: float, high: float) -> None:
    """Refuse data with a single value, or none: the model's response to them says nothing about images."""
    if low >= high:
        found = f"every value in all batches is {low:.6g}" if low == high else "the batches hold no values"
        raise CalibrationError(
            f"the data are constant or empty: {found}. Give images of the training data, with their transforms"
        )


def _run(model: nn.Module, inputs: Inputs, number: int) -> None:
    for tensor in tensors_in((inputs.args, inputs.kwargs)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(f"batch {number} of the data holds values that are not finite (NaN or infinity)")
    try:
        model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        remedy = ". Leave a last batch of one image out: drop_last=True" if _TOO_FEW in str(error) else ""
        raise CalibrationError(
            f"the model does not run on batch {number} of the data: {type(error).__name__}: {error}{remedy}"
        ) from error


def _of_all_ranks(found: Found, problem: Exception | None, all_ranks: bool) -> list[Found]:
    """Return what each process found; an error in one is an error in all, so that none waits for it."""
    if not (all_ranks and several_ranks()):
        if problem is not None:
            raise problem
        return [found]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    own = str(problem) if isinstance(problem, CalibrationError) else f"{type(problem).__name__}: {problem}"
    torch.distributed.all_gather_object(gathered, (found, None if problem is None else own))
    for rank, (_, message) in enumerate(gathered):
        if message is not None:
            raise CalibrationError(f"rank {rank}: {message}") from problem
    return [of_rank for of_rank, _ in gathered]


def _constants(path: str, moments: Sequence[Moments]) -> list[tuple[float, float]]:
    constants = []
    for index, operand in enumerate(moments):
        usable = math.isfinite(operand.mean) and math.isfinite(operand.std)
        if not usable or operand.std <= SMALLEST_STD * max(1.0, abs(operand.mean)):
            why = "it is constant on these data" if usable else "it is not finite"
            warnings.warn(
                f"{path}: map {index} has mean {operand.mean:.3g} and standard deviation {operand.std:.3g}, {why}; "
                "it is left as it is. Look at the weights before it (all zero?) and at the data, then calibrate again",
                stacklevel=3,
            )
            constants.append((0.0, 1.0))
        else:
            constants.append((operand.mean, 1 / operand.std))
    return constants


@contextlib.contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for norms that normalise by the batch in training; modes are restored afterwards."""
    norms = [m for m in model.modules() if isinstance(m._buffers.get("running_var"), torch.Tensor)]
    by_batch = [norm for norm in norms if norm.training or not model.training or _never_updated(norm)]
    with state_kept(model):
        model.eval()
        for norm in by_batch:
            norm.training = True
        yield


def _never_updated(norm: nn.Module) -> bool:
    mean, variance = norm._buffers.get("running_mean"), norm._buffers["running_var"]
    return (mean is None or not bool(mean.any())) and variance is not None and bool((variance == 1).all())
