"""Nothing that a forward writes, replaces, adds or draws stays, whatever runs the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import image, random_state
from odd_models import HABITS, Odd, described, odd_model, surroundings
from torch import nn

import rewriter
from rewriter.model.state import state_kept
from rewriter.testing import behaviour
from rewriter.tracing.inputs import candidate_inputs

READERS = {
    "plan": lambda model: rewriter.plan(model, input_size=12),
    "trace": lambda model: rewriter.trace(model, input_size=12),
    "param_groups": lambda model: rewriter.param_groups(model, weight_decay=0.1, input_size=12),
    "rewrite": lambda model: rewriter.rewrite(model, "dropout", input_size=12),
}


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("habit", HABITS)
def test_the_model_given_and_all_around_it_stay(habit: str, verb: str) -> None:
    model = odd_model(habit)
    model.bn.weight.grad = torch.ones(8)
    before, around, drawn = described(model), surroundings(), random_state()
    READERS[verb](model)
    assert described(model) == before
    assert surroundings() == around and random_state() == drawn


@pytest.mark.parametrize("habit", HABITS)
def test_so_it_does_when_its_behaviour_is_compared(habit: str) -> None:
    model = odd_model(habit)
    before, around, drawn = described(model), surroundings(), random_state()
    behaviour(model, candidate_inputs(model, input_size=12)[0], training=True)
    assert described(model) == before
    assert surroundings() == around and random_state() == drawn


@pytest.mark.parametrize("habit", HABITS)
def test_the_description_sees_what_one_run_leaves(habit: str) -> None:
    model = odd_model(habit).train()
    before, around = described(model), surroundings()
    with state_kept(model, list(model.parameters())):
        model(image(12))
        assert described(model) != before or surroundings() != around
    assert described(model) == before and surroundings() == around


@pytest.mark.parametrize("habit", HABITS)
def test_a_rewrite_in_place_changes_only_what_it_says_and_undo_takes_that_back(habit: str) -> None:
    model = odd_model(habit)
    model.train()
    before, around = described(model), surroundings()
    keys = list(model.state_dict())
    result = rewriter.rewrite(model, "dropout", input_size=12, inplace=True)
    assert result is model and len(rewriter.report(model).applied) == 1
    assert not rewriter.report(model).records[-1].verdict.failed
    assert list(model.state_dict()) == keys
    rewriter.undo(model, inplace=True)
    assert described(model) == before and surroundings() == around


@pytest.mark.parametrize("habit", HABITS)
def test_a_copy_is_the_model_as_it_was_given(habit: str) -> None:
    model = odd_model(habit)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = rewriter.rewrite(model, "dropout", input_size=12)
    assert list(result.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in result.state_dict().items())
    result.load_state_dict(state, strict=True)
    x = image(12)
    fresh = odd_model(habit).eval()
    assert torch.equal(result.eval()(x), fresh(x))


def test_a_model_that_fails_while_it_is_verified_is_as_it_was() -> None:
    def fail(model: Odd, x: torch.Tensor) -> None:
        model.count = getattr(model, "count", 0) + 1
        model.center = x.detach().mean((0, 2, 3))
        if x.device.type == "cpu" and model.training and not torch._C._len_torch_function_stack():
            raise ArithmeticError("not today")

    model = Odd(fail, lambda m: m.register_buffer("center", torch.zeros(8)))
    before = described(model)
    result = rewriter.rewrite(model, "dropout", input_size=12)
    assert "does not train" in str(rewriter.report(result))
    assert described(model) == before


class Spoiled(nn.Module):
    """A verification that fails: what was added while it ran must go too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log = [*getattr(self, "log", ()), 1]
        x = self.conv(x)
        if "_rewriter_base" in vars(type(self)):
            x = x + 1
        return self.fc(self.drop(x.mean((2, 3))))


@pytest.mark.parametrize("inplace", [False, True])
def test_after_a_broken_contract_the_model_is_as_it_was(inplace: bool) -> None:
    model = Spoiled()
    before = described(model)
    with pytest.raises(rewriter.RewriterError, match="broke its contract"):
        rewriter.rewrite(model, "dropout", input_size=12, inplace=inplace)
    assert described(model) == before


def test_hooks_of_the_user_report_to_the_user() -> None:
    shapes: list[Any] = []
    model = odd_model("closure")
    model.fc.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    with state_kept(model):
        model(image(12))
    assert len(shapes) == 1 and len(model.fc._forward_hooks) == 1


def test_what_is_held_beside_the_model_is_not_looked_into() -> None:
    """An optimizer that a training loop left on the model steps on, and is not put back."""
    model = odd_model("closure")
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with state_kept(model):
        model.optimizer.param_groups[0]["lr"] = 0.2
    assert model.optimizer.param_groups[0]["lr"] == 0.2
