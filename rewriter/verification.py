"""Check on the model itself that a rewrite kept what its passes promise.

The model is run before and after, with its own weights, in evaluation mode and, with a backward pass, in training mode.
Parameters, buffers, gradients, modes and random numbers are afterwards as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rewriter.guard import random_state_kept
from rewriter.guideline import Contract
from rewriter.hooks import REGISTRIES
from rewriter.inputs import Inputs, map_tensors, tensors_in
from rewriter.record import Verdict
from rewriter.skeleton import meta_twin, skeleton
from rewriter.tracing.shapes import PredictedCalls


@dataclass(frozen=True)
class Observation:
    """What one model did: its eval outputs, the parameters that got a gradient, and its state."""

    outputs: list[torch.Tensor]
    structure: str
    spread: float
    with_gradient: frozenset[str]
    train_error: str
    state: dict[str, tuple[int, torch.Size, int]]


def observe(model: nn.Module, inputs: Inputs, *, training: bool = True) -> Observation:
    """Run ``model`` and note what the contracts speak of: in both modes, or in evaluation mode only."""
    with state_kept(model, written_parameters(model, inputs)), random_state_kept():
        torch.manual_seed(0)
        model.eval()
        with torch.no_grad():
            result = model(*inputs.args, **inputs.kwargs)
            outputs = [t.detach().clone() for t in tensors_in(result)]
            torch.manual_seed(0)  # dropouts that stay on in evaluation mode draw the same again
            again = list(tensors_in(model(*inputs.args, **inputs.kwargs))) if _may_vary(outputs) else outputs
        structure, spread = _structure(result), _difference(outputs, again)
        del result
        with_gradient, train_error = _train(model, inputs) if training else (frozenset[str](), "")
    state = {key: (t.data_ptr(), t.shape, t._version) for key, t in model.state_dict(keep_vars=True).items()}
    return Observation(outputs, structure, spread, with_gradient, train_error, state)


def compare(before: Observation, after: Observation, contracts: list[Contract]) -> Verdict:
    """Judge the contracts of the passes that were applied."""
    checks: list[tuple[str, bool | None, str]] = []
    same_structure = before.structure == after.structure
    checks.append(
        ("output structure", same_structure, "" if same_structure else f"{before.structure} → {after.structure}")
    )
    if all(contract.eval_output for contract in contracts) and same_structure:
        difference = _difference(before.outputs, after.outputs)
        if difference != 0 and before.spread != 0:
            detail = (
                f"the original itself varies by {before.spread:.3g} from run to run, the change is {difference:.3g}"
            )
            checks.append(("eval output", None, detail))
        else:
            detail = "bit-identical" if difference == 0 else f"max |difference| {difference:.3g}"
            checks.append(("eval output", difference == 0, detail))
    if all(contract.state_dict for contract in contracts):
        lost = [key for key, entry in before.state.items() if after.state.get(key, (0, None))[1] != entry[1]]
        buffers = any(contract.adds_buffers for contract in contracts)
        added = [key for key in after.state if key not in before.state and not buffers]
        detail = f"changed: {', '.join((lost + added)[:5])}" if lost or added else f"{len(before.state)} tensors"
        checks.append(("state dict", not lost and not added, detail))
    if before.train_error:
        checks.append(("training", None, f"the original does not train on this input: {before.train_error}"))
    elif after.train_error:
        checks.append(("training", False, after.train_error))
    elif all(contract.gradients for contract in contracts):
        lost_gradients = sorted(before.with_gradient - after.with_gradient)
        none_for = f"none for {', '.join(lost_gradients[:5])}"
        detail = none_for if lost_gradients else f"{len(after.with_gradient)} parameters still get one"
        checks.append(("gradients", not lost_gradients, detail))
    return Verdict(tuple(checks))


def written_parameters(model: nn.Module, inputs: Inputs) -> list[nn.Parameter]:
    """Parameters that the model's own forward writes to: hardly ever any, found by running a skeleton on meta.

    Only these have to be copied before the model is run; all of them if the skeleton does not run on meta.
    """
    written: set[str] = set()
    twins = inputs.map(lambda t: meta_twin(t.detach()))
    for training in (False, True):
        copy = skeleton(model, meta_twin).train(training)
        try:
            with torch.no_grad(), torch.device("meta"), PredictedCalls():
                copy(*twins.args, **twins.kwargs)
        except Exception:
            return list(model.parameters())
        written |= {name for name, parameter in copy.named_parameters() if parameter._version > 0}
    return [parameter for name, parameter in model.named_parameters() if name in written]


@contextlib.contextmanager
def state_kept(model: nn.Module, parameters: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Afterwards buffers, gradients, modes, hooks, plain attributes and the ``parameters`` given are what they were."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    attributes = [_plain_attributes(module) for module in modules]
    hooks = [(registry, dict(registry)) for module in modules for registry in _hook_registries(module)]
    values = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *parameters)]
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for tensor, value in values:
                if tensor.device.type != "meta" and not torch.equal(tensor, value):
                    tensor.copy_(value)
        for module, attribute in zip(modules, attributes, strict=True):
            for name in [name for name in _plain_attributes(module) if name not in attribute]:
                del module.__dict__[name]
            module.__dict__.update(attribute)
        for registry, content in hooks:
            if registry != content:  # a forward may register hooks, and note in an attribute that it did
                registry.clear()
                registry.update(content)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _train(model: nn.Module, inputs: Inputs) -> tuple[frozenset[str], str]:
    """Parameters that a backward pass reaches, or why training does not run."""
    try:
        model.train()
        with torch.enable_grad():
            result = model(*inputs.args, **inputs.kwargs)
            scalars = [t.float().mean() for t in tensors_in(result) if t.requires_grad]
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


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    registries = ("_parameters", "_buffers", "_modules")
    return {
        name: dict(value) if type(value) is dict and name not in registries else value
        for name, value in module.__dict__.items()
        if name not in registries and not name.endswith("_hooks")
    }


def _hook_registries(module: nn.Module) -> list[dict[int, Any]]:
    return [value for name in REGISTRIES if isinstance(value := module.__dict__.get(name), dict)]


def _may_vary(outputs: list[torch.Tensor]) -> bool:
    return any(t.device.type not in ("cpu", "meta") for t in outputs)


def _difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """0 only if all are equal bit for bit (NaN equals NaN)."""
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a is b or a.device.type == "meta" or torch.equal(a, b):
            continue
        if a.is_floating_point() and bool((a.isnan() == b.isnan()).all()):
            worst = max(worst, float((a.double() - b.double()).abs().nan_to_num(0.0).max()))
        else:
            worst = float("inf")
    return worst


def _structure(value: Any) -> str:
    return str(map_tensors(_as_plain(value), lambda t: f"{t.dtype}{list(t.shape)}"))  # type: ignore[arg-type, return-value]


def _as_plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
