"""Checks for authors of passes, and for anyone who wants to verify the guarantees on their own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rewriter.api import original_state_dict, plan, undo
from rewriter.edit.classes import ClassEdit, MethodEdit, class_name, derive, re_emittable_methods, readable_sources
from rewriter.guideline.base import Passes
from rewriter.model.contents import tensors_held
from rewriter.model.copying import copy_model
from rewriter.model.differences import differences
from rewriter.model.random_state import random_state_kept
from rewriter.model.state import state_kept
from rewriter.planning.apply import apply_plan
from rewriter.planning.mark import nothing_said
from rewriter.planning.record import records_of
from rewriter.planning.remembered_inputs import inputs_to_run_on
from rewriter.subjects.function_module import Subject, as_module
from rewriter.subjects.held_function import is_function
from rewriter.text import counted
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.written import written_parameters


def null_rewrite(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Re-emit every method of every module whose class is not torch's, without an edit.

    The result must behave exactly like ``model``; this proves that re-emission specialises nothing.
    """
    target = model if inplace else copy_model(model)
    for module in target.modules():
        cls = type(module)
        if cls.__module__.startswith("torch."):
            continue
        methods = [
            MethodEdit(class_name(owner), name, source.digest)
            for owner, name, function in re_emittable_methods(cls)
            if not owner.__module__.startswith("torch.")
            for source in readable_sources(function)
            if source.function.__name__ == name and source.function.__code__.co_name == name
        ]
        module.__class__ = derive(cls, ClassEdit((), tuple(methods)))
    return target


def behaviour(model: nn.Module, inputs: Inputs, *, training: bool, seed: int = 0) -> dict[str, Any]:
    """Collect everything that can be compared about one run: outputs, gradients, buffers and the random state.

    The model's state is restored afterwards. Without parameters, as in a loss, the gradients are those of the inputs;
    of the first one only where the others are labels or weights that torch has no gradient for.
    """
    asked = list[tuple[str, torch.Tensor]](model.named_parameters())
    if asked:
        return _behaviour(model, inputs, asked, training, seed)
    inputs = inputs.map(lambda t: t.detach().clone())
    asked = [(f"input {number}", t) for number, t in enumerate(tensors_in((inputs.args, inputs.kwargs)))]
    floating = [tensor for _, tensor in asked if tensor.is_floating_point()]
    for tensor in floating:
        tensor.requires_grad_(training)
    try:
        return _behaviour(model, inputs, asked, training, seed)
    except RuntimeError as error:
        if "not differentiable" not in str(error):
            raise
    for number, tensor in enumerate(floating):
        tensor.requires_grad_(number == 0).grad = None
    return _behaviour(model, inputs, asked, training, seed)


def _behaviour(
    model: nn.Module, inputs: Inputs, asked: Sequence[tuple[str, torch.Tensor]], training: bool, seed: int
) -> dict[str, Any]:
    with state_kept(model, written_parameters(model, inputs)), random_state_kept():
        torch.manual_seed(seed)
        model.train(training)
        with torch.set_grad_enabled(training):
            outputs = tensors_held(model(*inputs.args, **inputs.kwargs))
            means = [t.float().square().mean() for t in outputs if t.requires_grad]
            if training and means:
                torch.stack(means).sum().backward()  # type: ignore[no-untyped-call]
        found = {
            "outputs": [t.detach().clone() for t in outputs],
            "gradients": {n: None if t.grad is None else t.grad.clone() for n, t in asked},
            "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
            "random": torch.get_rng_state(),
        }
    return found


def check_contract(
    model: Subject,
    passes: Passes,
    *,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
    must_find: bool = False,
) -> Subject:
    """Assert on ``model`` what every pass promises, and return the rewritten model.

    The contract is verified, a second rewrite finds nothing to do, a plan survives JSON, a checkpoint of the original
    loads with ``strict=True`` and vice versa (:func:`rewriter.original_state_dict`), and undo restores a model that
    behaves exactly like the original in both modes.

    Args:
        model: the original, a model or a function; it is not changed.
        passes, example_inputs, input_size: as for :func:`rewriter.rewrite`.
        must_find: also assert that something is applied; a pass that does nothing keeps every promise.

    Raises:
        AssertionError: a promise is broken. For a contract it is a :class:`rewriter.ContractError`, a subclass.

    Example:
        >>> model = timm.create_model("test_resnet", drop_rate=0.2)
        >>> model = rewriter.testing.check_contract(model, "dropout", must_find=True)
    """
    subject: Any = as_module(model)
    inputs = inputs_to_run_on(subject, example_inputs, input_size)[0]
    made = plan(subject, passes, example_inputs=example_inputs, input_size=input_size)
    found = f"{counted(len(made.skipped), 'place')} left alone:\n{made}" if made.skipped else "no candidates"
    assert made.sites or not must_find, f"nothing is applied to this {type(subject).__name__}; {found}"
    assert type(made).from_json(made.to_json()) == made, "the plan does not survive JSON"
    rewritten: Any = apply_plan(made, subject, inputs=inputs)
    verdict = records_of(rewritten)[-1].verdict
    assert verdict is not None and not verdict.failed, str(verdict)
    with nothing_said():
        _check_checkpoints(subject, rewritten)
    again = plan(rewritten, passes, example_inputs=example_inputs, input_size=input_size)
    assert not again.sites, (
        f"a second rewrite finds more to do; where the edit is made already, decide() has to raise "
        f"Refused(Reason.ALREADY_DONE, …):\n{again}"
    )
    result: Subject = rewritten
    with nothing_said():
        restored: Any = undo(rewritten)
    if is_function(model):
        assert restored is subject.__wrapped__, "undo gives another function than the original"
        return result
    assert [type(m) for m in restored.modules()] == [type(m) for m in subject.modules()], "undo left other classes"
    for training in (False, True):
        others = differences(
            behaviour(subject, inputs, training=training), behaviour(restored, inputs, training=training)
        )
        assert not others, f"after undo these differ: {others[:5]}"
    return result


def _check_checkpoints(model: nn.Module, rewritten: nn.Module) -> None:
    """Assert that a checkpoint of each loads strictly into the other."""
    for target, given, whose in (
        (copy_model(rewritten), model.state_dict(), "a checkpoint of the original does not load"),
        (
            copy_model(model),
            original_state_dict(rewritten),
            "what original_state_dict gives does not load",
        ),
    ):
        try:
            target.load_state_dict(given)
        except RuntimeError as error:
            raise AssertionError(f"{whose}: {error}") from error
