"""What the verbs do with a function: plan, diff, report, check, trace, undo, and the state of what it holds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses import (
    FiniteLog,
    Likelihood,
    LogPass,
    TemperaturePass,
    batch,
    branches_on_values,
    closure,
    decorated,
    decorated_by_torch,
    plain,
    probability,
    with_defaults,
    with_helper,
    writes_to_its_target,
)
from torch import nn
from torchvision.ops import sigmoid_focal_loss

import rewriter
from rewriter import Plan
from rewriter.authoring import Kind


def test_a_plan_is_shown_and_applied_to_the_function_again() -> None:
    inputs = batch()
    plan = rewriter.plan(plain, LogPass(), example_inputs=inputs)
    assert str(plan).startswith("plan for plain: finite-log") and plan.model == "losses.plain"
    assert plan.has_structure_of(plain) and not plan.has_structure_of(probability)
    plan.check_fits(plain)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    rewritten = again.apply(plain)
    assert torch.equal(rewritten(*inputs), plain(*inputs)) and len(rewriter.report(rewritten).applied) == 1


def test_a_plan_of_another_function_or_source_does_not_fit(import_text: Callable[[str], ModuleType]) -> None:
    text = "import torch\ndef loss(p):\n    return -torch.log(p).mean()\n"
    first, same, other = (import_text(t).loss for t in (text, text, text.replace("mean", "sum")))
    plan = rewriter.plan(first, LogPass(), example_inputs=torch.rand(3))
    assert plan.has_structure_of(same) and len(rewriter.report(plan.apply(same)).applied) == 1
    for function in (other, plain):
        assert not plan.has_structure_of(function)
        with pytest.raises(rewriter.PlanError, match=r"the plan was made for another .*loss .*Make a new plan"):
            plan.apply(function)


def test_the_diff_is_that_of_the_users_text() -> None:
    diff = rewriter.plan(with_defaults, LogPass(), example_inputs=batch()).diff(with_defaults)
    lines = diff.splitlines()
    assert lines[1] == "--- losses.with_defaults"
    first = next(line for line in inspect.getsource(with_defaults).splitlines() if line.startswith("def"))
    assert f"-{first}" in lines and f"+{first.replace('(', '(self, ', 1)}" in lines
    assert "+    loss = -((1 - p) ** gamma) * target * self.log(p)" in lines
    assert "@weighted" not in rewriter.plan(decorated, LogPass(), example_inputs=batch()).diff(decorated)


def test_a_helper_is_adopted_and_stays_as_it_is_for_others() -> None:
    diff = rewriter.plan(with_helper, LogPass(), example_inputs=batch()).diff(with_helper)
    assert "+    return -(target * self.log_likelihood(torch.sigmoid(prediction))).mean()" in diff
    assert "-def _log_likelihood(probability: torch.Tensor) -> torch.Tensor:" in diff
    assert "+    return self.log(probability)" in diff


def test_a_report_names_what_was_done() -> None:
    report = rewriter.report(rewriter.rewrite(plain, LogPass(), example_inputs=batch()))
    assert report.verified and "gradients holds (2 inputs still get one)" in str(report)
    assert "in force: 1 place" in str(report)
    assert str(rewriter.report(plain)) == "not rewritten"


def test_a_function_where_nothing_applies_is_callable_all_the_same() -> None:
    inputs = batch()
    rewritten: Any = rewriter.rewrite(probability, LogPass(), example_inputs=inputs)
    assert not rewriter.report(rewritten).applied and rewriter.undo(rewritten) is probability
    assert torch.equal(rewritten(*inputs), probability(*inputs))
    assert rewriter.undo(rewriter.rewrite(plain, ())) is plain


def test_the_default_passes_find_nothing_in_a_loss() -> None:
    assert not rewriter.plan(sigmoid_focal_loss, example_inputs=batch()).sites


def test_a_finding_names_the_line_of_the_users_file() -> None:
    for function in (plain, decorated, Likelihood().method):
        (finding,) = rewriter.check(function, LogPass(), example_inputs=batch())
        lines, first = inspect.getsourcelines(inspect.unwrap(function))
        assert finding.code == "XX0201" and finding.fixable and finding.path == ""
        assert finding.file == inspect.getsourcefile(inspect.unwrap(function))
        assert finding.line == first + next(n for n, line in enumerate(lines) if "torch.log(" in line)
    assert not rewriter.check(rewriter.rewrite(plain, LogPass(), example_inputs=batch()), LogPass())


def test_a_trace_is_that_of_a_model() -> None:
    prediction, target = batch()
    trace = rewriter.trace(sigmoid_focal_loss, (prediction, target))
    assert trace.backend == "meta" and trace.modes_alike
    assert [node.target.__name__ for node in trace.operations(Kind.ACTIVATION)] == ["sigmoid"]  # type: ignore[union-attr]
    graph = rewriter.to_graph_module(plain, (prediction, target))
    assert torch.equal(graph(prediction, target), plain(prediction, target))


@pytest.mark.thorough
def test_a_branch_on_values_is_run_on_the_values_given() -> None:
    prediction, target = batch()
    plan = rewriter.plan(branches_on_values, LogPass(), example_inputs=(prediction, target))
    assert len(plan.sites) == 1 and "traced on cpu tensors" in plan.notes[0]
    assert not rewriter.plan(branches_on_values, LogPass(), example_inputs=(prediction, target * 0)).sites
    rewritten = rewriter.rewrite(branches_on_values, LogPass(), example_inputs=(prediction, target))
    assert rewritten(prediction, target * 0) == 0


@pytest.mark.thorough
def test_the_inputs_of_the_caller_are_not_written_to() -> None:
    prediction, target = batch()
    before = target.clone()
    assert rewriter.report(
        rewriter.rewrite(writes_to_its_target, LogPass(), example_inputs=(prediction, target))
    ).applied
    assert torch.equal(target, before) and prediction.grad is None


def with_history(history: list[float]) -> Callable[..., torch.Tensor]:
    calls = 0

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        history.append(calls)
        return -(target * torch.log(torch.sigmoid(prediction))).mean()

    return loss


def test_what_a_closure_counts_is_not_counted_while_it_is_planned() -> None:
    history: list[float] = []
    rewritten = rewriter.rewrite(with_history(history), LogPass(), example_inputs=batch())
    assert rewriter.report(rewritten).verified and history == []
    rewritten(*batch())
    assert history == [1]


network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def perceptual(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -torch.log(torch.sigmoid(network(prediction) - network(target))).mean()


def test_a_network_that_a_loss_names_stays_as_it_is() -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    rewritten = rewriter.rewrite(perceptual, LogPass(), example_inputs=batch())
    assert len(rewriter.report(rewritten).applied) == 1
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert not list(rewritten.parameters())  # type: ignore[attr-defined]


def test_what_a_closure_holds_does_not_depend_on_the_inputs() -> None:
    weights = torch.rand(3)

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        scale = weights.sum()
        return (F.relu(prediction) * target).sum() / scale

    trace = rewriter.trace(loss, batch())
    of_weights, of_inputs = [node for node in trace.graph.nodes if node.target in (torch.Tensor.sum, torch.sum)]
    assert of_inputs in trace.flow.nodes() and of_weights not in trace.flow.nodes()


def test_a_function_without_a_gradient_is_verified_as_far_as_it_goes() -> None:
    with_gradient = rewriter.report(rewriter.rewrite(decorated_by_torch, LogPass(), example_inputs=batch()))
    assert with_gradient.verified

    @torch.no_grad()
    def metric(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.sigmoid(prediction)).mean()

    report = rewriter.report(rewriter.rewrite(metric, LogPass(), example_inputs=batch()))
    assert report.verified is None and "no output requires a gradient" in str(report)


def test_a_plan_file_is_for_a_function_too(tmp_path: Any) -> None:
    inputs, file = batch(), tmp_path / "plan.json"
    first = rewriter.rewrite(plain, LogPass(), example_inputs=inputs, plan_file=file)
    second = rewriter.rewrite(plain, LogPass(), plan_file=file)
    assert json.loads(file.read_text())["model"] == "losses.plain"
    assert len(rewriter.report(second).applied) == len(rewriter.report(first).applied) == 1
    assert rewriter.rewrite(first, LogPass(), plan_file=file) is first


class WithLoss(nn.Module):
    """A model that holds its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.loss = rewriter.rewrite(closure(2.0), TemperaturePass(), example_inputs=batch())

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        return self.loss(self.fc(x), target)


def test_a_rewritten_loss_is_a_part_of_a_model() -> None:
    model, inputs = WithLoss(), batch()
    assert list(model.state_dict()) == ["fc.weight", "fc.bias", "loss.scale.temperature"]
    rewritten = rewriter.rewrite(model, LogPass(), example_inputs=inputs)
    ((path, layer),) = ((path, m) for path, m in rewritten.named_modules() if isinstance(m, FiniteLog))
    assert path == "loss.log" and torch.equal(rewritten(*inputs), model(*inputs))
    layer.least = 9.0
    assert rewritten(*inputs) != model(*inputs) == rewriter.undo(rewritten)(*inputs)
