"""What passes find in whole libraries may not become less: every count in ``sites.json`` is a floor.

``python benchmarks/coverage.py`` writes the counts, with the passes as asked for here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rewriter
from rewriter import zoo
from rewriter.passes import AtrousRates, Dropout, GroupCount, ScaleEqualizer, StochasticPooling, WeightDecay

PASSES = [
    AtrousRates(),
    Dropout(p=0.1, head_p=0),
    GroupCount(),
    ScaleEqualizer(additive=True),
    StochasticPooling(),
    WeightDecay(),
]
BY_NAME = [
    "gaussian-attention-bias",
    "kernel-padding",
    "numeric-safety",
    "patch-norm",
    "position-variance",
    "temperature-free",
    "timestep-embedding",
]
FLOORS: dict[str, dict[str, int]] = json.loads((Path(__file__).parent / "sites.json").read_text())


@pytest.mark.sweep("name", FLOORS)
@pytest.mark.parametrize("name", FLOORS)
def test_no_fewer_sites_than_before(name: str) -> None:
    with torch.device("meta"):
        entry = zoo.create(name, **zoo.quick_options(name))
    examples = {"example_inputs": entry.example_inputs} if entry.example_inputs else {"input_size": entry.input_size}
    floors = dict(FLOORS[name])
    for passes in filter(None, (PASSES, [each for each in BY_NAME if floors.get(each)])):
        plan = rewriter.plan(entry.model, passes, **examples)
        for pass_name, *_ in plan.passes:
            sites, _, advice = plan.findings(pass_name)
            assert len(sites) + len(advice) >= floors.pop(pass_name, 0), pass_name
    assert not floors
