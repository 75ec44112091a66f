"""A site whose rate is 0 is in force and does nothing: it is counted apart, at the time of asking."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import timm_model
from torch import nn

import rewriter
from rewriter.passes import Dropout, StochasticPooling


def test_a_default_vit_has_nothing_applied() -> None:
    plan = rewriter.plan(timm_model("test_vit"), "dropout")
    assert len(plan.sites) == len(plan.inactive) == 12
    assert "dropout: 0 sites, 12 inactive, " in str(plan) and "dropout:p=0.2" in str(plan)
    assert [site["inactive"] for site in json.loads(plan.to_json())["sites"]] == [True] * 12
    assert rewriter.Plan.from_json(plan.to_json()).inactive == plan.inactive
    report = rewriter.report(plan.apply(timm_model("test_vit"), verify=False))
    assert report.applied == () and report.inactive == plan.sites
    assert "dropout: 0 applied, 12 inactive, " in str(report) and "dropout:p=0.2" in str(report)
    assert len(json.loads(report.to_json())[0]["inactive"]) == 12


def test_it_is_asked_at_the_time_of_reading() -> None:
    model = rewriter.rewrite(timm_model("test_vit"), "dropout", verify=False)
    model.blocks[0].attn.proj_drop.p = 0.1
    report = rewriter.report(model)
    assert [site.path for site in report.applied] == ["blocks.0"] and len(report.inactive) == 11
    model.blocks[0].attn.proj_drop.p = 0.0
    assert rewriter.report(model).applied == ()


def test_a_rate_makes_them_applied_and_plans_of_it_count_none() -> None:
    for passes, options in (("dropout", {"proj_drop_rate": 0.1}), (Dropout(p=0.2), {})):
        model = rewriter.rewrite(timm_model("test_vit", **options), passes, verify=False)
        assert len(rewriter.report(model).applied) == 12 and not rewriter.report(model).inactive
        assert " inactive" not in str(rewriter.report(model))


class Functional(nn.Module):
    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.conv, self.fc, self.drop_rate = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.fc(F.dropout(x, p=self.drop_rate, training=self.training))


class Written(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.fc(F.dropout(x, 0.0, self.training))


def test_a_functional_dropout_reads_its_rate_from_the_model() -> None:
    model = rewriter.rewrite(Functional(0.0), "dropout", input_size=16)
    assert len(rewriter.report(model).inactive) == 1
    model.drop_rate = 0.3
    assert len(rewriter.report(model).applied) == 1 and not rewriter.report(model).inactive
    assert len(rewriter.report(rewriter.rewrite(Written(0.5), "dropout", input_size=16)).inactive) == 1


def test_removing_one_that_drops_is_an_effect() -> None:
    """Of two, the one of rate 0 stays where it belongs, and the one that drops is removed."""
    model = timm_model("test_vit")
    model.blocks[0].mlp.drop2.p = 0.3
    report = rewriter.report(rewriter.rewrite(model, "dropout", verify=False))
    assert [site.path for site in report.applied] == ["blocks.0"]


def test_pooling_that_keeps_everything() -> None:
    model = rewriter.rewrite(timm.create_model("test_resnet"), StochasticPooling(keep_prob=1.0), verify=False)
    report = rewriter.report(model)
    assert report.inactive and not report.applied
    next(m for m in model.modules() if hasattr(m, "keep_prob")).keep_prob = 0.5
    assert len(rewriter.report(model).applied) == 1


@pytest.mark.parametrize("origin", ["head dropout moved", "inserted"])
def test_the_rate_of_a_dropout_that_acts_elsewhere(origin: str) -> None:
    given, passes = (timm_model("test_resnet"), Dropout(p=0.1))
    if origin == "head dropout moved":
        given, passes = timm_model("test_resnet", drop_rate=0.1), Dropout()
    model = rewriter.rewrite(given, passes, verify=False)
    applied = len(rewriter.report(model).applied)
    model.drop_rate = 0.0
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    report = rewriter.report(model)
    assert applied and len(report.inactive) == applied and not report.applied


def test_a_report_in_one_line_and_as_numbers() -> None:
    model = timm.create_model("test_resnet", drop_rate=0.2)
    report = rewriter.report(rewriter.rewrite(model, ["dropout", "stochastic-pooling"]))
    assert report.summary() == f"dropout 1, {len(report.skipped)} skipped; verified"
    numbers = report.flat()
    assert numbers["rewriter/applied"] == 1 and numbers["rewriter/dropout/applied"] == 1
    assert numbers["rewriter/verified"] == "verified" and numbers["rewriter/seconds/plan"] > 0  # type: ignore[operator]
    assert numbers["rewriter/skipped"] == len(report.skipped)
    assert rewriter.report(model).summary() == "not rewritten"
