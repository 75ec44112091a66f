"""A dropout that some ways do not lead to is not put where all ways lead; one that only asks for itself may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import image, output
from torch import nn

import rewriter
from rewriter import Reason


class Pool(nn.Module):
    """The pooling is in another method than the dropout: what the dropout does has to be put there."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x).flatten(1)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), Pool(), nn.Linear(8, 4)
        self.drop: Any = nn.Dropout(0.5)
        self.use_drop = True

    def features(self, x: torch.Tensor) -> Any:
        return self.pool(self.conv(x).relu())


class UnderCondition(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        if self.use_drop:
            x = self.drop(x)
        return self.fc(x)


class InOneOperand(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        return self.fc(self.use_drop and self.drop(x))


class BehindReturn(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        if not self.use_drop:
            return self.fc(x)
        return self.fc(self.drop(x))


class BehindReturnOfMethod(Base):
    def dropped(self, x: torch.Tensor) -> Any:
        if not self.use_drop:
            return x
        return self.drop(x)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.dropped(self.features(x)))


def applied_if(use: bool, layer: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    return layer(x) if use else x


class InHelper(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(applied_if(self.use_drop, self.drop, self.features(x)))


class MethodUnderCondition(Base):
    def dropped(self, x: torch.Tensor) -> Any:
        return self.drop(x)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        return self.fc(self.dropped(x) if self.use_drop else x)


@pytest.mark.parametrize(
    "cls", [UnderCondition, InOneOperand, BehindReturn, BehindReturnOfMethod, InHelper, MethodUnderCondition]
)
def test_a_dropout_under_a_condition_is_not_put_into_another_method(cls: type[Base]) -> None:
    plan = rewriter.plan(cls(), "dropout", input_size=16)
    assert not plan.sites and [skip.reason for skip in plan.skipped] == [Reason.NOT_MOVABLE]
    assert "cannot be moved: " in plan.skipped[0].detail


class IfPresent(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        if self.drop is not None:
            x = self.drop(x)
        return self.fc(x)


class IfRate(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.features(x)
        return self.fc(self.drop(x) if self.drop.p > 0 else x)


class ReturnIfMissing(Base):
    def dropped(self, x: torch.Tensor) -> Any:
        if self.drop is None:
            return x
        return self.drop(x)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.dropped(self.features(x)))


@pytest.mark.parametrize("cls", [IfPresent, IfRate, ReturnIfMissing])
def test_a_condition_that_only_asks_for_the_dropout_itself_does_not_matter(cls: type[Base]) -> None:
    model = cls()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert [site.action for site in rewriter.report(rewritten).applied] == ["move drop before pool.pool"]
    assert not torch.equal(output(rewritten, image(16), training=True), output(rewritten, image(16)))


class PresentOneByOne(nn.Module):
    """A head in one method, whose dropout may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)
        self.drop: Any = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.pool(self.conv(x)).flatten(1)
        if self.drop is not None:
            x = self.drop(x)
        return self.fc(x)


class TrueIfPresent(PresentOneByOne):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.pool(self.conv(x)).flatten(1)
        return self.fc(self.drop(x) if self.drop else x)


@pytest.mark.parametrize("cls", [PresentOneByOne, TrueIfPresent])
def test_a_moved_dropout_may_still_be_missing(cls: type[PresentOneByOne]) -> None:
    model, x = cls(), image(16)
    rewritten: Any = rewriter.rewrite(model, "dropout", input_size=16)
    assert [site.action for site in rewriter.report(rewritten).applied] == ["move drop before pool"]
    assert not torch.equal(output(rewritten, x, training=True), output(rewritten, x))
    rewritten.drop = None
    assert torch.equal(output(rewritten, x, training=True), output(model, x))


def test_a_dropout_whose_mode_is_switched_alone_is_off_where_it_was_moved_to() -> None:
    rewritten: Any = rewriter.rewrite(IfPresent(), "dropout", input_size=16).train()
    rewritten.drop.eval()
    x = image(16)
    assert torch.equal(rewritten(x), rewritten(x)) and rewritten.training
    rewritten.drop.train()
    assert not torch.equal(rewritten(x), rewritten(x))


class Again(Base):
    """A dropout that is called twice, so that the second call can only be taken out of the text."""

    def again(self, x: torch.Tensor) -> Any:
        return self.drop(x)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.again(self.pool(self.drop(self.conv(x)))))


class Starred(Again):
    def again(self, x: torch.Tensor) -> Any:
        args = (x,)
        return self.drop(*args)


class TwoStars(Again):
    def again(self, x: torch.Tensor) -> Any:
        return self.drop(**{"input": x})


class ByKeyword(Again):
    def again(self, x: torch.Tensor) -> Any:
        return self.drop(input=x)


@pytest.mark.parametrize("cls", [Starred, TwoStars, ByKeyword])
def test_a_call_that_does_not_show_its_tensor_is_not_movable(cls: type[Base]) -> None:
    plan = rewriter.plan(cls(), "dropout", input_size=16)
    refused = next(skip for skip in plan.skipped if skip.pattern == "head")
    assert not plan.sites and refused.reason is Reason.NOT_MOVABLE
    assert "does not take the tensor as a plain argument" in refused.detail
