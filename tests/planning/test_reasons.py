"""Reasons are true: which place is told, how often, and what is said of it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.reasons import Reason


class WithAuxiliaryHead(nn.Module):
    """Segmentation beside a classifier of what is in the image, whose features also weigh the map (EncNet)."""

    def __init__(self, weighs: bool) -> None:
        super().__init__()
        self.weighs, self.stem = weighs, nn.Conv2d(3, 8, 3, padding=1)
        self.pool, self.middle, self.classes = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 8), nn.Linear(8, 4)
        self.drop, self.head = nn.Dropout(0.1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x).relu()
        context = self.middle(self.pool(x).flatten(1))
        x = x * context.sigmoid()[..., None, None] if self.weighs else x
        return self.head(self.drop(x)), self.classes(context.relu())


@pytest.mark.parametrize("weighs", [False, True])
def test_a_dropout_of_a_segmentation_is_not_behind_the_pooling_of_another_head(weighs: bool) -> None:
    plan = rewriter.plan(WithAuxiliaryHead(weighs), "dropout", input_size=16)
    (skip,) = (skip for skip in plan.skipped if skip.path == "drop")
    assert skip.reason is Reason.OUTSIDE


class PooledInALoop(nn.Module):
    """One pooling that runs for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        columns = [F.adaptive_avg_pool2d(column, (4, 1)) for column in x.split(1, 3)]
        return self.head(torch.cat(columns, 3))


def test_one_pooling_is_one_place() -> None:
    plan = rewriter.plan(PooledInALoop(), "stochastic-pooling", input_size=16)
    assert len([skip for skip in plan.skipped if skip.pattern != "head"]) == 1


class Twice(nn.Module):
    """A part of a block that is called twice: as one object under two names, or from two lines."""

    def __init__(self, how: str) -> None:
        super().__init__()
        drop = nn.Dropout(0.1)
        self.how, self.embed, self.head = how, nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        between = [drop] if how == "names" else []
        self.ff = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), *between, nn.Linear(8, 8), drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.ff(x)
        if self.how == "lines":
            x = x + self.ff(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_the_module_that_is_called_twice_is_named_with_the_calls() -> None:
    def told(how: str) -> str:
        plan = rewriter.plan(Twice(how), [{"dropout": {"p": 0.1}}], input_size=16)
        return next(skip.detail for skip in plan.skipped if skip.reason is Reason.SHARED_MODULE)

    assert "module 'ff.3' (Dropout) is called 2 times" in told("names") and "'ff.3', 'ff.5'" in told("names")
    assert "module 'ff' (Sequential) is called 2 times" in told("lines")
    assert len(set(re.findall(r"line (\d+) in Twice\.forward\(\)", told("lines")))) == 2


class Scored(nn.Module):
    """Attention without a residual, whose weights are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.drop = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Dropout(0.1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.embed(x).flatten(2).transpose(1, 2)).chunk(3, 2)
        return self.head(self.drop((q @ k.transpose(1, 2)).softmax(-1)) @ v)  # type: ignore[no-any-return]


def test_attention_dropout_is_told_outside_of_branches() -> None:
    (skip,) = (s for s in rewriter.plan(Scored(), "dropout", input_size=16).skipped if s.path == "drop")
    assert skip.reason is Reason.ATTENTION_DROPOUT
