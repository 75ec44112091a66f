"""A second rewrite finds nothing to do, whatever form the first one took."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter import Reason
from rewriter.passes import Dropout, StochasticPooling


def pooled(x: torch.Tensor, flat: bool = True) -> torch.Tensor:
    x = F.adaptive_avg_pool2d(x, 1)
    return x.flatten(1) if flat else x


def tokens_pooled(x: torch.Tensor, pool_type: str = "token") -> torch.Tensor:
    return x[:, 0] if pool_type == "token" else x.mean(dim=1)


class OfMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(pooled(self.conv(x).relu(), flat=True))


class OfTokens(OfMaps):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(tokens_pooled(self.conv(x).flatten(2).transpose(1, 2), pool_type="avg"))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(pooled(x))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 8, 3), Head(), Head()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv(x)
        return [self.one(x), self.other(x)]


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("form", [OfMaps, OfTokens, TwoHeads])
def test_a_helper_that_became_a_method(form: type[nn.Module], duplicate: Callable[[Any], Any]) -> None:
    model = duplicate(rewriter.rewrite(form(), "stochastic-pooling", input_size=16))
    places = len(rewriter.report(model).applied)
    again = rewriter.plan(model, "stochastic-pooling", input_size=16)
    assert not again.sites and [skip.reason for skip in again.skipped] == [Reason.ALREADY_DONE] * places
    both = rewriter.plan(model, [Dropout(p=0.1)], input_size=16)
    assert not both.sites, "one kind of noise at one pooling, also over several rewrites"
    assert [skip.reason for skip in both.skipped] == [Reason.CLAIMED] * places


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"global_pool": "avg"}),
        ("eva02_tiny_patch14_224", {"global_pool": "avg"}),
        ("davit_tiny", {}),
        ("mobilevitv2_050", {}),
        ("test_convnext", {}),
    ],
)
def test_models_of_a_library(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    passes = [Dropout(p=0.1, head_p=0), StochasticPooling()]
    plan = rewriter.plan(model, passes)
    with torch.device("meta"):
        result = plan.apply(model, verify=False)
    assert plan.sites and not rewriter.plan(result, passes).sites
