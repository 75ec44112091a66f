"""Without a dropout, what it gave is what it read: refused where somebody's write would then reach another's tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.reasons import Reason

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """The parts of a pre-activation branch; subclasses drop what conv2 gives, write to that, and read it again."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv1, self.conv2, self.aux = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.drop = nn.Dropout(0.5)


def plan_of(model: nn.Module) -> rewriter.Plan:
    return rewriter.plan(model, "dropout", example_inputs=X)


class Add(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        out = self.drop(y)
        out += x
        return out, self.read(y)

    def read(self, y: torch.Tensor) -> Any:
        return self.aux(y)


class AddOfAView(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        out = self.drop(y)
        out.view(2, 3, -1).add_(x.flatten(2))
        return out, y


class AddInto(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        out = F.dropout(y, 0.5, self.training)
        with torch.no_grad():
            out = torch.add(out, x, out=out.detach())
        return out, y


class AddToAViewBefore(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        rows = y.flatten(1)
        out = self.drop(y)
        out += x
        return out, rows


class AddThenActivation(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        out = x + F.relu(self.drop(y), inplace=True)
        return out, y


WRITES = [Add, AddOfAView, AddInto, AddToAViewBefore, AddThenActivation]
"""All of these read ``y`` twice, so that a move before conv2 would reach the other reader as well."""


def second(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What the other reader of conv2's output is given in training, and what conv2 gave."""
    model, given = copy.deepcopy(model).train(), []
    model.conv2.register_forward_hook(lambda _, __, output: given.append(output.detach().clone()))
    model.aux.register_forward_hook(lambda _, args, __: given.append(args[0].detach().clone()))
    result = model(X)
    return (given[1] if len(given) > 1 else result[1].detach()).reshape(given[0].shape), given[0]


@pytest.mark.parametrize("block", WRITES)
def test_the_other_reader_still_reads_what_the_convolution_gave(block: type[Block]) -> None:
    model = block()
    assert torch.equal(*second(model))
    assert torch.equal(*second(rewriter.rewrite(model, "dropout", example_inputs=X)))


class Head(nn.Module):
    """A pooled head whose dropout already stands before the pooling, so that the second one only goes."""

    def __init__(self, use: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Tanh()
        self.drop1, self.drop2, self.fc = nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(8, 4)
        self.norm, self.relu, self.use = nn.LayerNorm(8), nn.ReLU(inplace=True), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.pool(self.drop1(self.conv(x))).flatten(1)
        return self.fc(self.use(self, f))


def reads_before_the_write_later(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(f)
    d += 1
    return d * f


def writes_a_row_and_reads(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(f)
    d[:, 0] = 0
    return d + f


def activates_in_place_and_reads(m: Head, f: torch.Tensor) -> torch.Tensor:
    return m.relu(m.drop2(f)) + f


def writes_through_data(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(f)
    d.data.mul_(3)
    return d - f


def writes_to_what_was_read(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(f)
    f += 1
    return d * 2


def writes_behind_two_dropouts(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = F.dropout(m.drop2(f), 0.5, m.training)
    d += 1
    return d - f


def writes_over_a_result_that_a_gradient_needs(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(m.act(f))
    d += 1
    return d


def writes_over_an_input_that_a_gradient_needs(m: Head, f: torch.Tensor) -> torch.Tensor:
    n = m.norm(f)
    d = m.drop2(f)
    d += n
    return d


def writes_over_one_of_several_views(m: Head, f: torch.Tensor) -> torch.Tensor:
    first, rest = f.split([4, 4], 1)
    d = m.drop2(first)
    d += 1
    return torch.cat([d, rest], 1)


CONFLICTS = [
    reads_before_the_write_later, writes_a_row_and_reads, activates_in_place_and_reads, writes_through_data,
    writes_to_what_was_read, writes_behind_two_dropouts, writes_over_a_result_that_a_gradient_needs,
    writes_over_an_input_that_a_gradient_needs, writes_over_one_of_several_views,
]  # fmt: skip


@pytest.mark.parametrize("use", CONFLICTS)
def test_a_dropout_whose_result_is_written_to_is_left_where_its_input_would_change(use: Callable[..., Any]) -> None:
    plan = plan_of(Head(use))
    assert not plan.sites
    assert {skipped.reason for skipped in plan.skipped} == {Reason.WRITTEN_IN_PLACE}


def adds_in_place(m: Head, f: torch.Tensor) -> torch.Tensor:
    d = m.drop2(f)
    d += 1
    return d


def adds_itself(m: Head, f: torch.Tensor) -> torch.Tensor:
    n = f + 1
    d = m.drop2(f)
    d += n
    return d


def reads_what_does_not_share(m: Head, f: torch.Tensor) -> torch.Tensor:
    copied = f.clone()
    d = m.drop2(f)
    d[:, 0] = 0
    return d + copied


def activates_in_place(m: Head, f: torch.Tensor) -> torch.Tensor:
    return m.relu(m.drop2(m.norm(f)))


@pytest.mark.parametrize("use", [adds_in_place, adds_itself, reads_what_does_not_share, activates_in_place])
def test_a_write_that_nobody_else_sees_is_no_obstacle(use: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = Head(use)
    rewritten = rewriter.rewrite(model, "dropout", example_inputs=X)
    assert rewriter.report(rewritten).applied
    with torch.no_grad():
        for drop in (model.drop1, model.drop2, rewritten.drop1, rewritten.drop2):
            drop.p = 0.0
        assert torch.equal(model.train()(X), rewritten.train()(X))
    rewritten(X).sum().backward()
    assert all(p.grad is not None for name, p in rewritten.named_parameters() if not name.startswith("norm"))


def test_a_wide_resnet_block_that_adds_in_place_is_rewritten() -> None:
    class Plain(Add):
        def read(self, y: torch.Tensor) -> Any:
            return None

    rewritten = rewriter.rewrite(Plain(), "dropout", example_inputs=X)
    assert rewriter.report(rewritten).applied
