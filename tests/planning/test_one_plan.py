"""One architecture, one plan: what a process has drawn, its floating type and whether it has values decide nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, FEW_BLOCKS, create
from torch import nn

import rewriter
from rewriter.passes import AtrousRates, Dropout, GroupCount, ScaleEqualizer, StochasticPooling, WeightDecay

PASSES = [AtrousRates(), Dropout(p=0.1), GroupCount(), ScaleEqualizer(), StochasticPooling(squeeze=True), WeightDecay()]


def plan(family: str, seed: int, change: Callable[[nn.Module], nn.Module]) -> Any:
    """The plan as data, but for the type of the inputs, which is that of the model."""
    torch.manual_seed(seed)
    model = change(create(family, **FEW_BLOCKS.get(family, {})))
    data = json.loads(rewriter.plan(model, PASSES).to_json())
    data["request"].pop("arguments")
    return data


@pytest.mark.sweep("family", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_depends_on_the_architecture_alone(family: str) -> None:
    first = plan(family, 0, nn.Module.float)
    assert plan(family, 1, nn.Module.bfloat16) == first
    assert plan(family, 2, lambda model: model.to("meta")) == first
