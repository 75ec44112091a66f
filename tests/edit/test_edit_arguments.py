"""Verbs on arguments that are given by name, and on what helper functions give."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import rewriter
from rewriter.authoring import Place, Refused
from rewriter.edit.edits import apply_edits
from rewriter.tracing.kinds import function_name

DROPOUT = {"p": 0.0}


def doubled(x: torch.Tensor) -> torch.Tensor:
    x = x + 1
    return x * 2


def with_sum(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = x.sum()
    return x * 2, total


class Called(nn.Module):
    """Calls that give arguments by name, and helper functions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = doubled(self.fc(x))
        y, total = with_sum(x)
        return F.scaled_dot_product_attention(x, x, y, dropout_p=0.0, attn_mask=self.bias) + total


class Spread(Called):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = {"attn_mask": self.bias}
        return F.scaled_dot_product_attention(x, x, x, **given)


def traced(model: nn.Module) -> tuple[rewriter.Trace, dict[str, fx.Node]]:
    trace = rewriter.trace(model, example_inputs=torch.randn(2, 4, 4))
    nodes = [node for node in trace.train.graph.nodes if node.op == "call_function"]
    return trace, {f"{function_name(node.target)} {index}": node for index, node in enumerate(nodes)}


def the(nodes: dict[str, fx.Node], name: str, which: int = 0) -> fx.Node:
    return [node for key, node in nodes.items() if key.startswith(f"{name} ")][which]


def edited_text(place: Place[None], model: nn.Module) -> str:
    expected = model(torch.ones(1, 4, 4))
    apply_edits(model, place.edits)
    assert torch.equal(model(torch.ones(1, 4, 4)), expected)
    return inspect.getsource(type(model).forward)


def test_an_argument_that_is_given_by_name() -> None:
    model = Called()
    trace, nodes = traced(model)
    attention = the(nodes, "scaled_dot_product_attention")
    place = Place(trace, attention, "attention")
    place.edit.wrap_argument(attention, attention.kwargs["attn_mask"], "dropout/dropout", name="added", **DROPOUT)
    assert "attn_mask=self.added(self.bias))" in edited_text(place, model)


def test_an_argument_that_the_text_does_not_name_is_refused() -> None:
    trace, nodes = traced(Spread())
    attention = the(nodes, "scaled_dot_product_attention")
    place = Place(trace, attention, "attention")
    with pytest.raises(Refused, match="does not take the tensor as a plain argument"):
        place.edit.wrap_argument(attention, attention.kwargs["attn_mask"], "dropout/dropout", **DROPOUT)
    assert not place.edits


def test_behind_a_helper_function() -> None:
    model = Called()
    trace, nodes = traced(model)
    place = Place(trace, the(nodes, "mul"), "result")
    place.edit.insert_after_helper(the(nodes, "mul"), "dropout/dropout", name="added", **DROPOUT)
    assert "x = self.added(doubled(self.fc(x)))" in edited_text(place, model)


@pytest.mark.parametrize(("name", "which"), [("add", 0), ("mul", 1), ("sum", 0), ("scaled_dot_product_attention", 0)])
def test_what_a_helper_does_not_hand_on_alone_is_refused(name: str, which: int) -> None:
    trace, nodes = traced(Called())
    place = Place(trace, the(nodes, name, which), "result")
    with pytest.raises(Refused):
        place.edit.insert_after_helper(the(nodes, name, which), "dropout/dropout", **DROPOUT)
    assert not place.edits


def attend(module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, key, attn_mask=mask)


class Chosen(Called):
    """Gives itself to a function under a local name, as transformers does, and a mask that no input reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = {"sdpa": attend}["sdpa"]
        bias = self.bias.unsqueeze(0)
        return attention(self, x, self.fc(x), bias)


def test_a_function_that_is_given_the_module() -> None:
    model = Chosen()
    trace, nodes = traced(model)
    attention = the(nodes, "scaled_dot_product_attention")
    place = Place(trace, attention, "attention")
    mask = attention.kwargs["attn_mask"]
    place.edit.insert_before_helper(attention, mask, "dropout/dropout", lambda _: DROPOUT, name="added")
    assert "attention(self, x, self.fc(x), self.added(bias))" in edited_text(place, model)
