"""Observe a model's behaviour, as far as the contracts of passes concern it.

The model is run with the weights that it has (verification gives values to those that are all zero), in evaluation mode
and, with a backward pass, in training mode. Parameters, buffers, gradients, modes and random state are restored
afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rewriter.errors import listed
from rewriter.model.contents import Content, Unseen, contents, is_unseen, tensors_held
from rewriter.model.differences import dense, difference, largest_difference, other_structure, rounding_of
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.model.state import saved_tensors, state_kept
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.written import written_parameters

NOTHING_TO_TRAIN = "no output requires a gradient"


@dataclass(frozen=True)
class Observation:
    """The observed behaviour of one model: eval outputs, parameters that received a gradient, and state.

    ``spread`` is the difference between the outputs of repeated runs. Of a loss, which has no parameters, the gradients
    of its inputs are observed (``of_inputs``).
    """

    outputs: list[Content]
    spread: float
    with_gradient: frozenset[str]
    train_error: str
    state: dict[str, torch.Size | None]
    of_inputs: bool = False


def observe(model: nn.Module, inputs: Inputs, *, training: bool = True, of_inputs: bool = False) -> Observation:
    """Run ``model`` and record what the contracts concern: in both modes, or in evaluation mode only.

    Args:
        model: the model; its state is restored.
        inputs: what it is run on.
        training: whether it is run in training mode, too.
        of_inputs: whether the gradients of the inputs are observed, and not those of parameters. Such a model gets
            copies of the inputs in every run, since losses write to them.
    """

    def run() -> Any:
        given = inputs.map(lambda t: t.detach().clone()) if of_inputs else inputs
        return contents(model(*given.args, **given.kwargs))

    with state_kept(model, written_parameters(model, inputs)), random_state_kept():
        seed_all(0)
        model.eval()
        with torch.no_grad():
            outputs = [_kept(content) for content in run()]
            spread = 0.0
            if _may_vary(outputs):
                seed_all(0)  # dropouts that stay on in evaluation mode draw the same again
                spread = _drift(outputs, list(run()))
        with_gradient, train_error = frozenset[str](), ""
        if training:
            with_gradient, train_error = _inputs_reached(model, inputs) if of_inputs else _train(model, inputs)
    return Observation(outputs, spread, with_gradient, train_error, saved_tensors(model), of_inputs)


def drift_between(first: Observation, second: Observation) -> float:
    """Return how far the outputs of two observations of one model differ: 0 if a run leaves nothing behind."""
    return _drift(first.outputs, second.outputs)


def _drift(first: list[Content], second: list[Content]) -> float:
    return largest_difference(first, second)[0] if not other_structure(first, second) else math.inf


def _train(model: nn.Module, inputs: Inputs) -> tuple[frozenset[str], str]:
    """Return the parameters that a backward pass reaches, or why training does not run."""
    try:
        model.train()
        with torch.enable_grad():
            result = model(*inputs.args, **inputs.kwargs)
            scalars = [dense(t).abs().float().mean() for t in tensors_held(result) if t.requires_grad]
            if not scalars:
                return frozenset(), NOTHING_TO_TRAIN
            torch.stack(scalars).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        return frozenset(), f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        reached = frozenset(name for name, p in model.named_parameters() if p.grad is not None)
        for parameter in model.parameters():
            parameter.grad = None
    return reached, ""


def _inputs_reached(model: nn.Module, inputs: Inputs) -> tuple[frozenset[str], str]:
    """Return the inputs that a backward pass reaches, or why training does not run.

    Those that are asked are those that say they require a gradient, or else all that can; or else the first, since
    functions refuse a gradient of their targets or weights.
    """
    given = list(tensors_in((inputs.args, inputs.kwargs)))
    can = [number for number, tensor in enumerate(given) if tensor.is_floating_point() or tensor.is_complex()]
    asked = [number for number in can if given[number].requires_grad] or can
    reached, error = frozenset[str](), ""
    for wanted in dict.fromkeys((tuple(asked), tuple(asked[:1]))):
        copies = [t.detach().clone().requires_grad_(number in wanted) for number, t in enumerate(given)]
        left = iter(copies)
        _, error = _train(model, inputs.map(lambda _, left=left: next(left)))  # type: ignore[misc]
        reached = frozenset(f"input {number}" for number in wanted if copies[number].grad is not None)
        if not error:
            break
    return reached, error


def _may_vary(outputs: list[Content]) -> bool:
    tensors = (content.value for content in outputs if isinstance(content.value, torch.Tensor))
    return any(tensor.device.type not in ("cpu", "meta") for tensor in tensors)


def _kept(content: Content) -> Content:
    """Return a copy of a tensor's present value, which later runs may overwrite."""
    value = content.value
    return replace(content, value=value.detach().clone()) if isinstance(value, torch.Tensor) else content


def judge_outputs(before: Observation, after: Observation, *, rounding: bool = False) -> tuple[bool | None, str]:
    """Whether the outputs are equal bit for bit, and what was observed; None if that cannot be decided.

    With ``rounding`` they need only be equal up to that.
    """
    if not any(content.comparable for content in before.outputs):
        on_meta = any(isinstance(content.value, torch.Tensor) for content in before.outputs)
        why = "tensors on meta have no values" if on_meta else "the output holds no tensor and no number"
        return None, f"nothing to compare: {why}"
    largest, where = largest_difference(before.outputs, after.outputs)
    if largest == 0:
        unseen = [f"output{c.path} ({c.kind})" for c in before.outputs if is_unseen(c.value)]
        cut_off = any(isinstance(content.value, Unseen) for content in before.outputs)
        remark = "; not everything was compared" if cut_off else ""
        return True, f"bit-identical{remark}; not looked into: {listed(unseen)}" if unseen else "bit-identical"
    if rounding and _differ_in_rounding(before.outputs, after.outputs):
        return True, f"equal up to rounding, max |difference| {largest:.3g}"
    if before.spread != 0:
        detail = f"the model itself varies by {before.spread:.3g} from run to run, the change is {largest:.3g}"
        return None, detail
    return False, f"max |difference| {largest:.3g} at output{where}"


def _differ_in_rounding(before: list[Content], after: list[Content]) -> bool:
    pairs = [(a.value, b.value) for a, b in zip(before, after, strict=True)]
    return all(difference(a, b) <= (rounding_of(dense(a)) if isinstance(a, torch.Tensor) else 0.0) for a, b in pairs)
