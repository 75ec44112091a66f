"""A dropout is moved only if nobody but its head or branch reads what changes: seen in training, value by value."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.passes import Dropout, ScaleEqualizer, StochasticPooling
from rewriter.reasons import Reason

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A pooled head; subclasses say in ``head`` who reads the pooled features ``f`` of the map ``x``."""

    rate = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.drop, self.drop2 = nn.Dropout(0.5), nn.Dropout(0.4)
        self.fc, self.fc2 = nn.Linear(8, 4), nn.Linear(8, 4)
        self.memory, self.state = [], SimpleNamespace()
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.conv(x).relu()
        return self.head(x, self.pool(x).flatten(1))

    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        raise NotImplementedError

    def features(self, result: Any) -> torch.Tensor:
        """What somebody else than the classifier reads."""
        return result[1]


class Whole(Net):
    """All in one method, so that the call itself would be moved."""

    def forward(self, x: torch.Tensor) -> Any:
        f = self.pool(self.conv(x).relu()).flatten(1)
        return self.fc(self.drop(f)), f


class ByName(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        return {"scores": self.fc(self.drop(f)), "features": f}

    def features(self, result: Any) -> torch.Tensor:
        return result["features"]


class Functional(Net):
    def forward(self, x: torch.Tensor) -> Any:
        f = self.conv(x).relu().mean((2, 3))
        return self.fc(
            F.dropout(F.dropout(f, self.rate, self.training), self.rate, training=self.training)
        ), F.normalize(f)


class InAttribute(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.last = f
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return self.last


class InList(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.memory.append(f)
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return self.memory[-1]


class InObject(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.state.feature = f
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return self.state.feature


ELSEWHERE: list[torch.Tensor] = []


class InGlobal(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        ELSEWHERE.append(f)
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return ELSEWHERE[-1]


class InBuffer(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        with torch.no_grad():
            self.center.mul_(0).add_(f.mean(0))
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return self.center.clone()


class InRowsOfBuffer(InBuffer):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.center[:4] = f.detach()[0, :4]
        return self.fc(self.drop(f))


class SecondHead(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        return self.fc(self.drop(f)), self.fc2(f)


class Shortcut(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        residual = f * 2
        return self.fc(self.drop(f) + residual), residual


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pool.register_forward_hook(lambda pool, _, output: setattr(pool, "last", output))

    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        return self.fc(self.drop(f))

    def features(self, result: Any) -> torch.Tensor:
        return self.pool.last


class HookedBefore(Net):
    """The hook is before the classifier: a pre-hook on the sequence that begins with the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(self.drop, self.fc)
        self.classifier.register_forward_pre_hook(lambda module, args: setattr(module, "last", args[0]))

    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        return self.classifier(f)

    def features(self, result: Any) -> torch.Tensor:
        return self.classifier.last


def seen(model: Net) -> tuple[torch.Tensor, torch.Tensor]:
    """What the other reader sees in two training forwards."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        first, second = (model.features(model(X)).clone() for _ in range(2))
    return first, second


def reasons(plan: rewriter.Plan) -> set[str]:
    return {skipped.reason for skipped in plan.skipped}


READ_ELSEWHERE = [
    Whole, ByName, Functional, InAttribute, InList, InObject, InGlobal, InBuffer, InRowsOfBuffer, SecondHead, Shortcut,
    Hooked, HookedBefore,
]  # fmt: skip


@pytest.mark.parametrize("net", READ_ELSEWHERE)
def test_features_that_others_read_do_not_become_random(net: type[Net]) -> None:
    torch.manual_seed(0)
    model = net()
    assert torch.equal(*seen(model))
    for passes in ("dropout", None):
        assert torch.equal(*seen(rewriter.rewrite(model, passes, example_inputs=X)))
    assert Reason.OTHER_READERS in reasons(rewriter.plan(model, "dropout", example_inputs=X))


@pytest.mark.parametrize("net", [net for net in READ_ELSEWHERE if net is not SecondHead])
def test_features_that_others_read_are_not_pooled_at_random(net: type[Net]) -> None:
    model = net()
    model.drop.p = model.rate = 0.0
    rewritten = rewriter.rewrite(model, [StochasticPooling()], example_inputs=X)
    assert torch.equal(*seen(rewritten))
    assert Reason.OTHER_READERS in reasons(rewriter.plan(model, [StochasticPooling()], example_inputs=X))


class ReturnsDropped(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        d = self.drop(f)
        return self.fc(d), d


class KeepsDropped(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.last = F.dropout(f, self.rate, self.training)
        return self.fc(self.last)

    def features(self, result: Any) -> torch.Tensor:
        return self.last


@pytest.mark.parametrize("net", [ReturnsDropped, KeepsDropped])
def test_dropped_features_that_are_returned_or_kept_stay_dropped(net: type[Net]) -> None:
    model = net()
    for candidate in (model, rewriter.rewrite(model, "dropout", example_inputs=X)):
        first, _ = seen(candidate)
        assert (first == 0).float().mean() > 0.2, "a mask on pooled features leaves zeros"


class MapReadToo(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        return self.fc(self.drop(f)), x.amax((2, 3))


class OnlyTheShape(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        mask = f.new_ones(f.shape) + torch.zeros_like(f)
        return self.fc(self.drop(f)), mask.expand_as(f)


class Discarded(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        scale = f.norm()
        del scale
        return self.fc(self.drop(f)), x.amax((2, 3))


class KeptBefore(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        self.last = x
        return self.fc(self.drop2(self.drop(f)).view(-1, 8)), x.amax((2, 3))


class LeavesACycle(Net):
    """A caught error that refers to itself keeps the frame alive, and with it every local variable."""

    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        try:
            raise ValueError
        except ValueError as error:
            error.args = (error,)
        return self.fc(self.drop(f)), x.amax((2, 3))


class TwoHeadsBehind(Net):
    def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
        f = self.drop(f)
        return self.fc(f) + self.fc2(f), x.amax((2, 3))


@pytest.mark.parametrize("net", [MapReadToo, OnlyTheShape, Discarded, KeptBefore, LeavesACycle, TwoHeadsBehind])
def test_a_dropout_whose_input_nobody_else_reads_is_moved(net: type[Net]) -> None:
    rewritten = rewriter.rewrite(net(), "dropout", example_inputs=X)
    assert rewriter.report(rewritten).applied
    assert torch.equal(*seen(rewritten))
    first, second = (rewritten.train()(X)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_hooks_of_torch_read_nothing() -> None:
    model = Discarded()
    model.fc = nn.utils.spectral_norm(model.fc)
    model.conv = nn.utils.weight_norm(model.conv)
    assert rewriter.plan(model, "dropout", example_inputs=X).sites
    block = OnShortcut()
    block.conv2 = nn.utils.spectral_norm(block.conv2)
    assert rewriter.plan(block, "dropout", example_inputs=X).sites


def test_features_are_not_made_random_where_a_dropout_is_asked_for() -> None:
    model = Whole()
    model.drop = nn.Identity()
    plan = rewriter.plan(model, [Dropout(p=0.2)], example_inputs=X)
    assert not plan.sites and Reason.OTHER_READERS in reasons(plan)
    alone = nn.Sequential(model.conv, model.pool, nn.Flatten(), model.fc)
    assert len(rewriter.plan(alone, [Dropout(p=0.2)], example_inputs=X).sites) == 1


def test_a_model_without_a_classifier_is_for_what_it_pools() -> None:
    model = timm.create_model("resnet10t", num_classes=0, drop_rate=0.2)
    assert [site.pass_name for site in rewriter.plan(model, input_size=64).sites] == ["dropout"]


def test_a_dropout_in_a_block_behind_the_pooling_belongs_to_the_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
            self.drop1, self.drop2 = nn.Dropout(0.1), nn.Dropout(0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.drop2(self.fc2(self.drop1(self.fc1(self.norm(x)).relu())))

    class Blocks(Net):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.block, self.last = Block(), last

        def head(self, x: torch.Tensor, f: torch.Tensor) -> Any:
            f = self.block(f)
            return self.fc(self.drop(f) if self.last else f)

    for p in (None, 0.1):
        plan = rewriter.plan(Blocks(last=False), [Dropout(p=p, head_p=0)], example_inputs=X)
        assert [site.action for site in plan.sites] == ["keep drop1, remove drop2"]
    plan = rewriter.plan(Blocks(last=True), [Dropout()], example_inputs=X)
    assert [site.path for site in plan.sites] == ["block"]
    assert Reason.WEIGHT_BETWEEN in reasons(plan), "the head's own dropout is behind the weights of the block"


class PreActivation(nn.Module):
    """A residual branch; ``way`` says who else reads what lies on it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv1, self.conv2, self.aux = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv1(self.bn1(x).relu())
        if self.way == "early":
            h = self.drop(h)
        y = self.conv2(self.bn2(h).relu())
        if self.way == "read before":
            return x + self.drop(y), self.aux(y)
        if self.way == "read behind":
            y = self.drop(y)
            return x + y, self.aux(y)
        if self.way == "returned":
            return x + self.drop(y), y
        if self.way == "early":
            return x + y, self.aux(h)
        return x + self.drop(y), self.aux(x)


class OnShortcut(PreActivation):
    """Only the shortcut is read by another layer too."""

    def __init__(self) -> None:
        super().__init__("shortcut")

    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv1(self.bn1(x).relu())
        y = self.conv2(self.bn2(h).relu())
        return x + self.drop(y), self.aux(x)


@pytest.mark.parametrize("p", [None, 0.2])
@pytest.mark.parametrize("way", ["read before", "read behind", "returned", "early"])
def test_a_second_reader_in_a_branch_keeps_what_it_reads(way: str, p: float | None) -> None:
    model = PreActivation(way)
    plan = rewriter.plan(model, [Dropout(p=p)], example_inputs=X)
    assert not plan.sites and Reason.OTHER_READERS in reasons(plan)
    assert rewriter.plan(OnShortcut(), [Dropout(p=p)], example_inputs=X).sites


def test_an_inserted_dropout_does_not_reach_a_second_reader() -> None:
    model = PreActivation("returned")
    model.drop = nn.Identity()
    plan = rewriter.plan(model, [Dropout(p=0.2)], example_inputs=X)
    assert not plan.sites and Reason.OTHER_READERS in reasons(plan)


def test_a_call_that_does_more_with_its_argument_is_not_given_a_dropped_one() -> None:
    class Pools(nn.Module):
        def __init__(self, hands_on: bool) -> None:
            super().__init__()
            self.pool, self.hands_on = nn.AdaptiveAvgPool2d(1), hands_on

        def forward(self, x: torch.Tensor) -> Any:
            return self.pool(x).flatten(1), x if self.hands_on else x.amax((2, 3))

    class Two(Net):
        def __init__(self, hands_on: bool) -> None:
            super().__init__()
            self.pools = Pools(hands_on)

        def forward(self, x: torch.Tensor) -> Any:
            f, maximum = self.pools(self.conv(x).relu())
            return self.fc(self.drop(f)), maximum

    for hands_on in (False, True):
        rewritten = rewriter.rewrite(Two(hands_on), "dropout", example_inputs=X)
        assert rewriter.report(rewritten).applied
        assert torch.equal(*seen(rewritten)), "the other result is not dropped"


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        high = F.interpolate(self.high(x), scale_factor=2, mode="bilinear")
        return torch.cat([self.low(x), high], 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.fused(x))


class FusedAndReturned(Fused):
    def forward(self, x: torch.Tensor) -> Any:
        fused = self.fused(x)
        return self.head(fused), fused


def test_a_fused_map_that_is_also_returned_is_not_equalized() -> None:
    plan = rewriter.plan(FusedAndReturned(), [ScaleEqualizer()], example_inputs=X)
    assert not plan.sites and reasons(plan) == {Reason.OTHER_READERS}
    assert rewriter.plan(Fused(), [ScaleEqualizer()], example_inputs=X).sites
