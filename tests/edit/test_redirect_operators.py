"""A layer in the place of an operator: ``x + y`` becomes ``self.layer(x, y)``."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import image
from torch import nn

import rewriter
from rewriter import testing
from rewriter.authoring import Change, Contract, Kind, Pass, Place, Reason, Refused, register_layer


@register_layer("redirected/operator")
class Operator(nn.Module):
    """An operator with a scaled right operand, on numbers of its own."""

    def __init__(self, operation: str, factor: float) -> None:
        super().__init__()
        self.operation, self.factor = operation, factor

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(operator, self.operation)(x, y * self.factor)
        return result


@dataclass(frozen=True)
class Redirected(Pass):
    name = "redirected"
    summary = paper = "an example"
    contract = Contract(eval_output=False)
    operation: str = "add"
    factor: float = 1.0

    def candidates(self, trace: Any) -> Any:
        kinds = (Kind.ADD, Kind.MULTIPLY, Kind.OTHER, Kind.MATMUL)
        return (
            Place(trace, node, "operator") for node in trace.operations(*kinds) if len(trace.flow.sources(node)) > 1
        )

    def decide(self, place: Any) -> Change:
        if isinstance(place.trace.owner_of(place.node), Operator):
            raise Refused(Reason.ALREADY_DONE, "it is a layer")
        place.edit.redirect(place.node, Operator, operation=self.operation, factor=self.factor)
        return Change("a layer for the operator", "as asked for")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)


class Sum(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x)


class SumOfNames(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x), self.two(x)
        return (a) + (b)


class SumInALine(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.one(x)
            + self.two(x)
        ).relu()  # fmt: skip


class SumWithOthers(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(2 * self.one(x) + -self.two(x) / 2)


class Difference(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) - self.two(x)


class Product(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) @ self.two(x)


class InPlace(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.one(x)
        a += (self.two(x))  # fmt: skip
        return a


class Commented(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.one(x)  # the + of two
            + self.two(x)
        )


FORMS = {
    Sum: ("add", "self.operator(self.one(x), self.two(x))"),
    SumOfNames: ("add", "self.operator((a), (b))"),
    SumInALine: ("add", ".relu()"),
    SumWithOthers: ("add", "self.operator(2 * self.one(x), -self.two(x) / 2)"),
    Difference: ("sub", "self.operator(self.one(x), self.two(x))"),
    Product: ("matmul", "self.operator(self.one(x), self.two(x))"),
    InPlace: ("iadd", "a = self.operator(a, (self.two(x)))"),
}


@pytest.mark.parametrize("net", FORMS, ids=lambda net: net.__name__)
def test_an_operator_becomes_a_call_of_the_layer_with_both_operands(net: type[Net]) -> None:
    name, text = FORMS[net]
    torch.manual_seed(0)
    model, x = net(), image(8)
    same = testing.check_contract(model, Redirected(name), example_inputs=x, must_find=True)
    torch.testing.assert_close(same(x), model(x), rtol=0, atol=0)
    assert text in str(rewriter.plan(model, Redirected(name), example_inputs=x).diff(model))
    scaled = rewriter.rewrite(model, Redirected(name, 3.0), example_inputs=x)
    tripled = net()
    tripled.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in tripled.two.parameters():
            parameter *= 3
    torch.testing.assert_close(scaled(x), tripled(x))


def test_an_operator_beside_a_comment_stays() -> None:
    plan = rewriter.plan(Commented(), Redirected(), example_inputs=image(8))
    (skipped,) = plan.skipped
    assert not plan.sites and skipped.reason == Reason.NOT_MOVABLE and "comment" in skipped.detail


def test_a_sum_in_a_loop_stays() -> None:
    class Loop(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = self.one(x)
            for _ in range(2):
                total = total + self.two(x)
            return total

    plan = rewriter.plan(Loop(), Redirected(), example_inputs=image(8))
    assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.IN_A_LOOP}


def test_a_sum_in_a_helper_function_makes_a_method_of_it() -> None:
    class Helped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _sum(self.one(x), self.two(x))

    model = Helped()
    plan = rewriter.plan(model, Redirected(), example_inputs=image(8))
    diff = plan.diff(model)
    assert "return self.sum(self.one(x), self.two(x))" in diff and "return self.operator(x, y)" in diff
    x = image(8)
    torch.testing.assert_close(rewriter.rewrite(model, Redirected(), example_inputs=x)(x), model(x), rtol=0, atol=0)


def _sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y
