"""Every form of a function can be rewritten, behaves as before, and is given back by undo."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from losses import (
    FORMS,
    FiniteLog,
    Likelihood,
    LogPass,
    Loss,
    Regularized,
    TemperaturePass,
    batch,
    keyword_only,
    plain,
    positional,
    recursive,
    variable,
)
from torch import nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

import rewriter
from rewriter.testing import check_contract


def gradient(loss: Loss, *inputs: torch.Tensor) -> torch.Tensor:
    prediction = inputs[0].clone().requires_grad_()
    loss(prediction, *inputs[1:]).sum().backward()
    assert prediction.grad is not None
    return prediction.grad


@pytest.mark.parametrize("form", FORMS)
def test_it_is_edited_and_computes_the_same(form: str) -> None:
    function, inputs = FORMS[form], batch()
    rewritten = rewriter.rewrite(function, LogPass(), example_inputs=inputs)
    report = rewriter.report(rewritten)
    assert report.applied[0].action.startswith("keep the logarithm finite") and report.verified
    assert torch.equal(rewritten(*inputs), function(*inputs))
    assert torch.equal(gradient(rewritten, *inputs), gradient(function, *inputs))
    assert sum(isinstance(layer, FiniteLog) for layer in layers(rewritten)) >= 1


@pytest.mark.parametrize("form", FORMS)
def test_it_looks_like_the_original_and_gives_it_back(form: str) -> None:
    function: Any = FORMS[form]
    rewritten: Any = rewriter.rewrite(function, LogPass(), example_inputs=batch())
    assert rewritten.__wrapped__ is function and rewriter.undo(rewritten) is function
    assert inspect.signature(rewritten) == inspect.signature(function)
    if inspect.isfunction(function):
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(rewritten, name) == getattr(function, name)
    assert rewritten.training and not list(rewritten.parameters()) and not rewritten.state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_it_holds_the_contract_of_passes(form: str) -> None:
    check_contract(FORMS[form], LogPass(), example_inputs=batch(), must_find=True)


@pytest.mark.parametrize("form", FORMS)
def test_copies_are_apart_and_share_what_the_function_holds(form: str) -> None:
    function, inputs = FORMS[form], batch()
    rewritten: Any = rewriter.rewrite(function, LogPass(), example_inputs=inputs)
    for other in (copy.deepcopy(rewritten), copy.copy(rewritten)):
        assert other is not rewritten and other.__wrapped__ is function
        assert torch.equal(other(*inputs), function(*inputs))
    deep = copy.deepcopy(rewritten)
    for layer in layers(deep):
        layer.least = 9.0
    assert rewritten(*inputs) != deep(*inputs)


def layers(rewritten: Any) -> list[Any]:
    return [module for module in rewritten.modules() if isinstance(module, FiniteLog)]


def test_arguments_by_name_alone() -> None:
    prediction, target = batch()
    inputs = {"prediction": prediction, "target": target, "eps": 0.5}
    rewritten = check_contract(keyword_only, LogPass(), example_inputs=inputs, must_find=True)
    assert torch.equal(rewritten(prediction, target=target), keyword_only(prediction, target=target))
    partial = functools.partial(keyword_only, target=target)
    assert torch.equal(rewriter.rewrite(partial, LogPass(), example_inputs=prediction)(prediction), partial(prediction))


def test_options_and_errors_are_the_functions_own() -> None:
    inputs = batch()
    rewritten = rewriter.rewrite(variable, LogPass(), example_inputs=inputs)
    assert torch.equal(rewritten(*inputs, eps=0.1), variable(*inputs, eps=0.1))
    with pytest.raises(ValueError, match="not enough values to unpack"):
        rewritten(inputs[0])
    with pytest.raises(TypeError, match=r"positional\(\) missing 1 required positional argument: 'target'"):
        rewriter.rewrite(positional, LogPass(), example_inputs=inputs)(inputs[0])  # type: ignore[call-arg]


def test_a_layer_with_a_parameter_is_trained() -> None:
    inputs = batch()
    rewritten: Any = check_contract(plain, TemperaturePass(), example_inputs=inputs, must_find=True)
    ((name, temperature),) = rewritten.named_parameters()
    assert torch.equal(rewritten(*inputs), plain(*inputs)) and name == "scale.temperature"
    optimizer = torch.optim.SGD(rewriter.param_groups(rewritten, weight_decay=0.1), lr=0.1)
    rewritten(*inputs).backward()
    optimizer.step()
    assert temperature != 1 and rewritten(*inputs) != plain(*inputs)
    assert torch.equal(copy.deepcopy(rewritten)(*inputs), rewritten(*inputs))
    assert rewriter.undo(rewritten) is plain


def test_two_passes_one_after_the_other_are_one_after_the_other() -> None:
    inputs = batch()
    once = rewriter.rewrite(plain, LogPass(), example_inputs=inputs)
    twice: Any = rewriter.rewrite(once, TemperaturePass())  # on inputs like those before
    assert [type(layer).__name__ for layer in twice.children()] == ["FiniteLog", "Scale"]
    assert torch.equal(twice(*inputs), plain(*inputs)) and rewriter.undo(twice) is plain
    assert len(rewriter.report(twice).records) == 2 and len(rewriter.report(once).records) == 1


def test_a_method_goes_on_with_its_object() -> None:
    loss, inputs = Likelihood(2.0), batch()
    rewritten = rewriter.rewrite(loss.method, LogPass(), example_inputs=inputs)
    before = rewritten(*inputs)
    loss.scale = torch.tensor(4.0)
    assert torch.equal(rewritten(*inputs), 2 * before)


class CallsAnObject(nn.Module):
    """A model whose operations are in a method of an object that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.likelihood = nn.Linear(3, 3), Likelihood()

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        return self.likelihood.method(x, target)


@pytest.mark.thorough
def test_the_argument_of_a_method_of_an_object_is_the_one_that_is_meant() -> None:
    loss, model = Regularized(), CallsAnObject()
    plan = rewriter.plan(loss, TemperaturePass(), example_inputs=batch())
    assert "super(__class__, self).__call__(the_module.scale(prediction), target)" in plan.diff(loss)
    plan = rewriter.plan(model, TemperaturePass(), example_inputs=batch())
    assert "self.likelihood.method(self.scale(x), target)" in plan.diff(model)


def test_a_recursion_goes_on_in_the_original() -> None:
    inputs = batch()
    rewritten = rewriter.rewrite(recursive, LogPass(), example_inputs=(*inputs, 0))
    assert torch.equal(rewritten(*inputs), recursive(*inputs))


@pytest.mark.parametrize("form", ["plain", "with_defaults", "decorated", "closure", "object", "method", "partial"])
def test_it_compiles_without_a_break(form: str) -> None:
    function, inputs = FORMS[form], batch()
    compiled = torch.compile(
        rewriter.rewrite(function, LogPass(), example_inputs=inputs), backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(*inputs), function(*inputs))
    torch.compiler.reset()


@pytest.mark.thorough
def test_focal_and_box_losses_of_torchvision() -> None:
    prediction, target = batch()
    focal: Any = check_contract(sigmoid_focal_loss, TemperaturePass(), example_inputs=(prediction, target))
    assert len(rewriter.report(focal).applied) == 1
    expected = sigmoid_focal_loss(prediction, target, alpha=-1, reduction="sum")
    assert torch.equal(focal(prediction, target, alpha=-1, reduction="sum"), expected)
    corners = torch.rand(5, 2)
    boxes = torch.cat([corners, corners + torch.rand(5, 2)], 1), torch.cat([corners, corners + 1], 1)
    giou = check_contract(generalized_box_iou_loss, (LogPass(), TemperaturePass()), example_inputs=boxes)
    assert torch.equal(giou(*boxes), generalized_box_iou_loss(*boxes))


def test_per_sample_gradients_of_torch_func() -> None:
    inputs = batch()
    rewritten = rewriter.rewrite(plain, LogPass(), example_inputs=inputs)
    of_each = torch.func.vmap(torch.func.grad(rewritten))(*inputs)
    assert torch.equal(of_each, torch.func.vmap(torch.func.grad(plain))(*inputs))
