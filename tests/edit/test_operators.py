"""A layer in the place of an operator, and operands of calls whose text is not in the order of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from written_methods import loss_module

import rewriter
from rewriter.authoring import Change, Contract, Pass, Place, Reason, Refused, register_layer
from rewriter.tracing.kinds import function_name

Load = Callable[[str], ModuleType]


@register_layer("for-test/scaled")
class Scaled(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
        return x * by * self.factor


@dataclass(frozen=True)
class OfFunctions(Pass):
    """A pass about the operations with certain names."""

    name = "for-test"
    summary = paper = "a test"
    contract = Contract(eval_output=False)
    functions: ClassVar[tuple[str, ...]] = ()

    def candidates(self, trace: Any) -> Iterator[Place[Any]]:
        for node in trace.operations():
            if node.op == "call_function" and function_name(node.target) in self.functions:
                yield Place(trace, node, "operation")


@dataclass(frozen=True)
class BeforeDifference(OfFunctions):
    """A layer before what is subtracted from 1, and before a sigmoid that is called as a function."""

    functions = ("rsub", "sigmoid")

    def decide(self, place: Place[Any]) -> Change:
        if isinstance(place.trace.owner_of(place.flow.sources(place.node)[0]), Scaled):
            raise Refused(Reason.ALREADY_DONE, "it is scaled")
        place.edit.insert_before(place.node, place.flow.sources(place.node)[0], Scaled, factor=3.0)
        return Change("scale", "a test")


def test_the_operand_of_a_reflected_operator_and_of_a_function_that_calls_a_method(import_text: Load) -> None:
    body = """
        def forward(self, x, t):
            return (1 - x) * F.sigmoid(t)
        """
    module = loss_module(import_text, body)
    x, t = torch.randn(2, 3), torch.rand(2, 3)
    rewritten = rewriter.rewrite(module, BeforeDifference(), example_inputs=(x, t))
    torch.testing.assert_close(rewritten(x, t), (1 - 3 * x) * torch.sigmoid(3 * t))


@dataclass(frozen=True)
class Products(OfFunctions):
    """x * y by a layer that is given both."""

    functions = ("mul",)

    def decide(self, place: Place[Any]) -> Change:
        place.edit.redirect(place.node, Scaled)
        return Change("a layer", "a test")


@pytest.mark.parametrize(
    "text", ["x * 2.0", "(x + t) * self.by", "(x) * (2.0)", "(x\n        + t) * 0.5", "torch.mul(x, 2)"]
)
def test_an_operator_is_redirected_with_both_operands(text: str, import_text: Load) -> None:
    module = loss_module(import_text, f"by = 3.0\n\ndef forward(self, x, t):\n    return ({text}) + 1")
    x, t = torch.randn(2, 3), torch.rand(2, 3)
    made = rewriter.plan(module, Products(), example_inputs=(x, t))
    rewritten = rewriter.rewrite(module, Products(), example_inputs=(x, t)) if made.sites else None
    assert rewritten is not None, made
    torch.testing.assert_close(rewritten(x, t), module(x, t))
    module.by = rewritten.by = 7.0  # type: ignore[assignment]
    torch.testing.assert_close(rewritten(x, t), module(x, t))
