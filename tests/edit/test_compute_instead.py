"""A value is computed by a layer from earlier values of the same function, on every path or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from written_methods import loss_module

import rewriter
from rewriter.authoring import Change, Contract, Pass, Place, register_layer
from rewriter.edit.computations import Compute, Given, Keep
from rewriter.edit.edited_text import edited_text
from rewriter.edit.operands import RESULT
from rewriter.edit.positions import positions
from rewriter.edit.source import Span, read_source
from rewriter.errors import PlanError, RewriterError, SourceError
from rewriter.tracing.kinds import Kind, function_name

Load = Callable[[str], ModuleType]


@register_layer("for-test/log-sigmoid")
class LogSigmoid(nn.Module):
    operation_kind = Kind.ACTIVATION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid(x)


@register_layer("for-test/difference")
class Difference(nn.Module):
    operation_kind = Kind.OTHER

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.log(x) - torch.log(y)


@dataclass(frozen=True)
class LogOfSigmoid(Pass):
    """log(sigmoid(x)), by the input of the sigmoid."""

    name = "for-test"
    summary = paper = "a test"
    contract = Contract(eval_output=False)

    all_calls: bool = False

    def candidates(self, trace: Any) -> Iterator[Place[Any]]:
        seen = set()
        for node in trace.operations():
            if node.op == "call_function" and function_name(node.target) == "log":
                line = next(iter(positions(node))).frame
                if (line.code, line.instruction) in seen:
                    continue
                seen.add((line.code, line.instruction))
                ways = [n for n in trace.operations() if _is_sigmoid(n, trace) and trace.flow.is_ancestor(n, node)]
                for sigmoid in ways:
                    yield Place(trace, node, "log of sigmoid", trace.flow.sources(sigmoid)[0])

    def decide(self, place: Place[Any]) -> Change:
        place.edit.compute_instead(place.node, LogSigmoid, place.subject, all_calls=self.all_calls)
        return Change("log sigmoid", "a test")


def _is_sigmoid(node: Any, trace: Any) -> bool:
    function = node.op == "call_function" and function_name(node.target) == "sigmoid"
    return function or isinstance(trace.module_of(node), nn.Sigmoid)


def _planned(module: nn.Module, item: Pass | None = None) -> rewriter.Plan:
    return rewriter.plan(module, item or LogOfSigmoid(), example_inputs=(torch.randn(2, 3), torch.rand(2, 3)))


DONE = {
    "nested": (
        """
        def forward(self, x, t):
            return torch.log(torch.sigmoid(x))
        """,
        "return self.log_sigmoid(x)",
    ),
    "nested module": (
        """
        def forward(self, x, t):
            return (self.act(x + 1)).log()
        """,
        "return self.log_sigmoid(x + 1)",
    ),
    "a parameter": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            return p * torch.log(p)
        """,
        "return p * self.log_sigmoid(x)",
    ),
    "a variable that is assigned again": (
        """
        def forward(self, x, t):
            x = torch.sigmoid(x)
            return torch.log(x)
        """,
        "x = torch.sigmoid((log_sigmoid_input := x))\n    return self.log_sigmoid(log_sigmoid_input)",
    ),
    "an expression": (
        """
        def forward(self, x, t):
            p = (x * 2).sigmoid()
            return p.log()
        """,
        "p = ((log_sigmoid_input := x * 2)).sigmoid()\n    return self.log_sigmoid(log_sigmoid_input)",
    ),
    "the name is taken": (
        """
        def forward(self, x, t):
            log_sigmoid_input = 1
            p = torch.sigmoid(x * 2)
            return p.log() * log_sigmoid_input
        """,
        "p = torch.sigmoid((log_sigmoid_input_1 := x * 2))",
    ),
    "in both branches of one test": (
        """
        def forward(self, x, t):
            if self.flag:
                p = torch.sigmoid(x + 1)
                return torch.log(p)
            return x
        """,
        "        return self.log_sigmoid(log_sigmoid_input)",
    ),
    "an exit between": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            if self.fine:
                return p
            return torch.log(p)
        """,
        "return self.log_sigmoid(x)",
    ),
}


@pytest.mark.parametrize("name", DONE)
def test_computed_from_an_earlier_value(name: str, import_text: Load) -> None:
    body, expected = DONE[name]
    module = loss_module(import_text, body)
    x, t = torch.randn(2, 3), torch.rand(2, 3)
    made = _planned(module)
    assert rewriter.Plan.from_json(made.to_json()) == made
    rewritten = rewriter.rewrite(module, LogOfSigmoid(), example_inputs=(x, t))
    changed = [line[1:].strip() for line in made.diff(module).splitlines() if line.startswith("+")]
    assert {line.strip() for line in expected.splitlines()} <= set(changed), changed
    torch.testing.assert_close(rewritten(x, t), module(x, t))
    assert rewritten(torch.full((2, 3), -200.0), t).isfinite().all() or name == "a parameter"
    assert len(rewriter.report(rewritten).applied) == 1
    torch.testing.assert_close(rewriter.undo(rewritten)(x, t), module(x, t), rtol=0, atol=0)


REFUSED = {
    "another name for it under a condition": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            q = p if self.flag else x
            return torch.log(q)
        """,
        "not certain that `p if self.flag else x`",
    ),
    "one of several that are assigned together": (
        """
        def forward(self, x, t):
            p, q = torch.sigmoid(x), t
            return torch.log(p)
        """,
        "not certain that `p` is the result",
    ),
    "something else is read": (
        """
        offset = 0.0

        def forward(self, x, t):
            return torch.log(torch.sigmoid(x) + self.offset)
        """,
        "reads `self` too",
    ),
    "something else is read before": (
        """
        def forward(self, x, t):
            power = 1
            p = torch.sigmoid(x) ** power
            return torch.log(p)
        """,
        "reads `power` too",
    ),
    "sigmoid under a condition": (
        """
        def forward(self, x, t):
            p = x
            if self.flag:
                p = torch.sigmoid(x)
            return torch.log(p)
        """,
        "not certain that",
    ),
    "sigmoid in a conditional expression": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x) if self.flag else x
            return torch.log(p)
        """,
        "not certain that",
    ),
    "conditional expression inside": (
        """
        def forward(self, x, t):
            return torch.log(torch.sigmoid(x) if self.flag else x)
        """,
        "not certain that",
    ),
    "changed under a condition that does not hold": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            if self.fine:
                p = p.clamp(0.1, 0.9)
            return p.log()
        """,
        "not certain that `p` is the result",
    ),
    "changed in place under a condition": (
        """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            if self.fine:
                p.clamp_(0.1, 0.9)
            return p.log()
        """,
        "not certain that `p` is the result",
    ),
    "the input is written to": (
        """
        def forward(self, x, t):
            y = x * 2
            p = torch.sigmoid(y)
            y.add_(1)
            return p.log()
        """,
        "writes to",
    ),
    "in a try": (
        """
        def forward(self, x, t):
            try:
                p = torch.sigmoid(x)
            except ValueError:
                p = x
            return p.log()
        """,
        "not certain that `p` is the result",
    ),
    "in a loop": (
        """
        def forward(self, x, t):
            for _ in range(2):
                p = torch.sigmoid(x)
                x = torch.log(p)
            return x
        """,
        "called 2 times|runs 2 times",
    ),
    "in another method": (
        """
        def probability(self, x):
            return torch.sigmoid(x)

        def forward(self, x, t):
            p = self.probability(x)
            return torch.log(p)
        """,
        "sigmoid.* lies between",
    ),
    "something else is called inside": (
        """
        def look(self, p):
            self.seen = 1
            return p

        def forward(self, x, t):
            return torch.log(self.look(torch.sigmoid(x)))
        """,
        "not certain that",
    ),
    "a walrus inside": (
        """
        def forward(self, x, t):
            y = torch.log(p := torch.sigmoid(x))
            return y + p
        """,
        "not certain that",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_another_path_would_differ(name: str, import_text: Load) -> None:
    body, detail = REFUSED[name]
    made = _planned(loss_module(import_text, body))
    assert not made.sites
    assert made.skipped
    assert re.search(detail, " ".join(skip.detail for skip in made.skipped)), [skip.detail for skip in made.skipped]


def test_a_hook_on_a_module_inside_is_not_lost(import_text: Load) -> None:
    module = loss_module(import_text, "def forward(self, x, t):\n    return torch.log(self.act(x))")
    module.act.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    made = _planned(module)
    assert not made.sites
    assert "forward hook" in made.skipped[0].detail


IN_LOOPS = {
    "the value of this turn": """
        def forward(self, x, t):
            total = x.new_zeros(())
            for level in (x, 2 * x, t):
                p = torch.sigmoid(level)
                total = total + torch.log(p).mean()
            return total
        """,
    "a value from before": """
        def forward(self, x, t):
            p, total = None, 0
            q = torch.sigmoid(x + 1)
            for scale in (1, 2):
                total = total + torch.log(q).mean() * scale
            return total
        """,
    "a method that is called twice": """
        def one(self, x):
            p = torch.sigmoid(x)
            return torch.log(p).mean()

        def forward(self, x, t):
            return self.one(x) + self.one(2 * x + t)
        """,
}


@pytest.mark.parametrize("name", IN_LOOPS)
def test_all_runs_of_an_expression(name: str, import_text: Load) -> None:
    module = loss_module(import_text, IN_LOOPS[name])
    assert not _planned(module).sites
    x, t = torch.randn(2, 3), torch.rand(2, 3)
    rewritten = rewriter.rewrite(module, LogOfSigmoid(all_calls=True), example_inputs=(x, t))
    assert len(rewriter.report(rewritten).applied) == 1
    torch.testing.assert_close(rewritten(x, t), module(x, t))
    assert rewritten(torch.full((2, 3), -200.0), t).isfinite().all()


def test_a_variable_that_changes_from_turn_to_turn_is_refused(import_text: Load) -> None:
    body = """
        def forward(self, x, t):
            p = torch.sigmoid(x)
            for _ in range(2):
                x = torch.log(p)
                p = torch.sigmoid(x)
            return x
        """
    made = _planned(loss_module(import_text, body), LogOfSigmoid(all_calls=True))
    assert not made.sites
    assert "not certain that `p`" in made.skipped[0].detail


HELPER = """
def loss(x, t, eps=0.0):
    p = torch.sigmoid(x * 2)
    return t * torch.log(p) + torch.sigmoid(x).log()
"""


@pytest.mark.parametrize("call", ["loss(x, t)", "loss(x, t, eps=self.fine)"])
def test_in_a_helper_function_that_becomes_a_method(call: str, import_text: Load) -> None:
    module = loss_module(import_text, f"def forward(self, x, t):\n    return {call}", HELPER)
    made = _planned(module)
    assert len(made.sites) == 2, made
    x, t = torch.randn(2, 3), torch.rand(2, 3)
    rewritten = rewriter.rewrite(module, LogOfSigmoid(), example_inputs=(x, t))
    torch.testing.assert_close(rewritten(x, t), module(x, t))
    assert rewritten(torch.full((2, 3), -200.0), t).isfinite().all()
    assert not module(torch.full((2, 3), -200.0), t).isfinite().all()
    assert made.diff(module).count("def loss") == 2  # before and after
    assert [name for name, _ in rewritten.named_children()] == ["act", "layers", "log_sigmoid", "log_sigmoid_1"]


@dataclass(frozen=True)
class Differences(Pass):
    """log(x / y) from x and y."""

    name = "for-test"
    summary = paper = "a test"
    contract = Contract(eval_output=False)

    def candidates(self, trace: Any) -> Iterator[Place[Any]]:
        for node in trace.operations():
            if node.op == "call_function" and function_name(node.target) == "log":
                yield Place(trace, node, "log", trace.flow.sources(trace.flow.sources(node)[0]))

    def decide(self, place: Place[Any]) -> Change:
        place.edit.compute_instead(place.node, Difference, *place.subject)
        return Change("a difference", "a test")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return torch.log((x.exp() + 1) / t)", "self.difference(x.exp() + 1, t)"),
        ("q = (x.exp() + 1) / t\n    return torch.log(q)", "q = ((difference_input := x.exp() + 1)) / t"),
    ],
)
def test_several_values(body: str, expected: str, import_text: Load) -> None:
    module = loss_module(import_text, f"def forward(self, x, t):\n    {body}")
    x, t = torch.randn(2, 3), torch.rand(2, 3) + 0.1
    rewritten = rewriter.rewrite(module, Differences(), example_inputs=(x, t))
    assert expected in rewriter.plan(module, Differences(), example_inputs=(x, t)).diff(module)
    torch.testing.assert_close(rewritten(x, t), module(x, t))


def _source(load: Load) -> Any:
    module = load("import torch\n\n\ndef f(self, x):\n    p = torch.sigmoid(x)\n    return torch.log(p)\n")
    return read_source(module.f)


@pytest.mark.parametrize("name", ["x", "self", "torch", "1a", "class", "p; import os"])
def test_a_plan_cannot_name_a_variable_that_is_used(name: str, import_text: Load) -> None:
    source = _source(import_text)
    with pytest.raises(PlanError, match="no free name"):
        edited_text(source, (Keep(Span(1, 8, 1, 24), 0, name),))


def test_a_plan_cannot_bring_code(import_text: Load) -> None:
    source = _source(import_text)
    call = Span(2, 11, 2, 23)
    with pytest.raises(RewriterError, match="no name of a variable"):
        edited_text(source, (Compute(call, RESULT, "layer", (Given("print(1)", call, 0),)),))
    with pytest.raises(SourceError, match="no plain operand"):
        edited_text(source, (Compute(call, RESULT, "layer", (Given("", call, 5),)),))
    assert "self.layer(p)" in edited_text(source, (Compute(call, RESULT, "layer", (Given("", call, 0),)),))
