"""What is set on a layer counts only if the layer computes with it: behaviours and hyper-parameters."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import image, output
from torch import nn

import rewriter
from rewriter import Reason
from rewriter.passes.stochastic_pooling import StochasticPooling


class Net(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), pool, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))


def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module._old_forward(*args, **kwargs)


def hooked(model: Net) -> Net:
    """As accelerate puts a hook on a module."""
    pool: Any = model.pool
    pool._old_forward = pool.forward
    pool.forward = functools.update_wrapper(functools.partial(new_forward, pool), pool._old_forward)
    return model


def test_a_forward_of_the_instance_that_calls_the_one_of_the_class_runs_the_behaviour() -> None:
    model = hooked(Net(nn.AdaptiveAvgPool2d(1)))
    rewritten: Any = rewriter.rewrite(model, StochasticPooling(), input_size=16)
    assert len(rewriter.report(rewritten).applied) == 1
    x = image(16)
    assert not torch.equal(rewritten.train()(x), rewritten(x))
    assert torch.equal(output(rewritten, x), output(model, x))
    undone: Any = rewriter.undo(rewritten)
    assert torch.equal(undone.train()(x), undone(x))


OUTSIDE: Any = [nn.AdaptiveAvgPool2d.forward]


def calls_outside(module: nn.Module, x: torch.Tensor) -> Any:
    return OUTSIDE[0](module, x)


def test_a_behaviour_that_never_runs_is_not_in_force() -> None:
    model: Any = Net(nn.AdaptiveAvgPool2d(1))
    model.pool.forward = functools.partial(calls_outside, model.pool)
    plan = rewriter.plan(model, StochasticPooling(), input_size=16)
    assert not plan.sites and plan.skipped[0].reason is Reason.NOT_IN_FORCE
    assert "module 'pool' does not run the forward of its class: partial is set on the instance" in str(plan.skipped)


def test_a_forward_of_the_instance_that_does_not_lead_to_the_class_is_left_alone() -> None:
    model: Any = Net(nn.AdaptiveAvgPool2d(1))
    model.pool.forward = functools.partial(F.adaptive_avg_pool2d, output_size=1)
    plan = rewriter.plan(model, StochasticPooling(), input_size=16)
    assert not plan.sites and plan.skipped[0].reason is Reason.OWN_FORWARD


class Weighted(nn.AdaptiveAvgPool2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.sigmoid())


def test_a_pooling_with_a_forward_of_its_own_is_left_alone() -> None:
    plan = rewriter.plan(Net(Weighted(1)), StochasticPooling(), input_size=16)
    assert not plan.sites and plan.skipped[0].reason is Reason.OWN_FORWARD


class OwnNumber(nn.GroupNorm):
    """Computes with a number of groups of its own, whatever ``num_groups`` says."""

    groups = 4

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input, self.groups, self.weight, self.bias, self.eps)


class OwnForward(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


@pytest.mark.parametrize(("cls", "effective"), [(OwnNumber, False), (OwnForward, True)])
def test_a_number_of_groups_that_the_norm_does_not_read_is_not_in_force(cls: type, effective: bool) -> None:
    torch.manual_seed(0)
    norm = cls(16, 64)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), norm, nn.ReLU(), nn.Conv2d(64, 8, 3))
    plan = rewriter.plan(model, "group-count", input_size=16)
    assert bool(plan.sites) is effective
    if not effective:
        assert [skip.reason for skip in plan.skipped] == [Reason.NOT_IN_FORCE]
        assert "num_groups of module '1' is not what its forward computes with" in plan.skipped[0].detail
