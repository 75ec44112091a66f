"""Observe a model's behaviour, as far as the contracts of passes concern it.

The model is run with the weights that it has (verification gives values to those that are all zero), in evaluation mode
and, with a backward pass, in training mode. Parameters, buffers, gradients, modes and random state are restored
afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from rewriter.errors import listed
from rewriter.model.contents import Content, Unseen, contents, is_unseen, tensors_held
from rewriter.model.differences import dense, largest_difference, other_structure
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.model.state import saved_tensors, state_kept
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.written import written_parameters


@dataclass(frozen=True)
class Observation:
    """The observed behaviour of one model: eval outputs, parameters that received a gradient, and state.

    ``spread`` is the difference between the outputs of repeated runs.
    """

    outputs: list[Content]
    spread: float
    with_gradient: frozenset[str]
    train_error: str
    state: dict[str, torch.Size | None]


def observe(model: nn.Module, inputs: Inputs, *, training: bool = True) -> Observation:
    """Run ``model`` and record what the contracts concern: in both modes, or in evaluation mode only."""
    with state_kept(model, written_parameters(model, inputs)), random_state_kept():
        seed_all(0)
        model.eval()
        with torch.no_grad():
            outputs = [_kept(content) for content in contents(model(*inputs.args, **inputs.kwargs))]
            spread = 0.0
            if _may_vary(outputs):
                seed_all(0)  # dropouts that stay on in evaluation mode draw the same again
                spread = _drift(outputs, list(contents(model(*inputs.args, **inputs.kwargs))))
        with_gradient, train_error = _train(model, inputs) if training else (frozenset[str](), "")
    return Observation(outputs, spread, with_gradient, train_error, saved_tensors(model))


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
                return frozenset(), "no output requires a gradient"
            torch.stack(scalars).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        return frozenset(), f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        reached = frozenset(name for name, p in model.named_parameters() if p.grad is not None)
        for parameter in model.parameters():
            parameter.grad = None
    return reached, ""


def _may_vary(outputs: list[Content]) -> bool:
    tensors = (content.value for content in outputs if isinstance(content.value, torch.Tensor))
    return any(tensor.device.type not in ("cpu", "meta") for tensor in tensors)


def _kept(content: Content) -> Content:
    """Return a copy of a tensor's present value, which later runs may overwrite."""
    value = content.value
    return replace(content, value=value.detach().clone()) if isinstance(value, torch.Tensor) else content


def judge_outputs(before: Observation, after: Observation) -> tuple[bool | None, str]:
    """Whether the outputs are equal bit for bit, and what was observed; None if that cannot be decided."""
    if not any(content.comparable for content in before.outputs):
        on_meta = any(isinstance(content.value, torch.Tensor) for content in before.outputs)
        why = "tensors on meta have no values" if on_meta else "the output holds no tensor and no number"
        return None, f"nothing to compare: {why}"
    difference, where = largest_difference(before.outputs, after.outputs)
    if difference == 0:
        unseen = [f"output{c.path} ({c.kind})" for c in before.outputs if is_unseen(c.value)]
        cut_off = any(isinstance(content.value, Unseen) for content in before.outputs)
        remark = "; not everything was compared" if cut_off else ""
        return True, f"bit-identical{remark}; not looked into: {listed(unseen)}" if unseen else "bit-identical"
    if before.spread != 0:
        detail = f"the model itself varies by {before.spread:.3g} from run to run, the change is {difference:.3g}"
        return None, detail
    return False, f"max |difference| {difference:.3g} at output{where}"
