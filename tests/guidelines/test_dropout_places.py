"""The place of the one dropout of a branch: before its last weight, or at its end; and what is out of place."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import slow_but
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.analysis.carrying import holds_attention_weights
from rewriter.analysis.dropouts import is_stochastic_depth
from rewriter.analysis.residual import find_branches
from rewriter.passes.dropout import Dropout
from rewriter.passes.dropout.layers import Bypassed
from rewriter.reasons import Reason
from rewriter.tracing.kinds import Kind


def of_zoo(name: str, **options: Any) -> nn.Module:
    return zoo.create(f"zoo:{name}", depths=(1, 1, 1), **options).model


def trained(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a step in training, and the outputs in evaluation after it."""
    torch.manual_seed(0)
    x, optimizer = torch.randn(8, 3, 32, 32), torch.optim.SGD(model.parameters(), 0.1)
    logits = model.train()(x)
    logits.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        return logits.detach(), model.eval()(x)


@pytest.mark.parametrize("place", ["P0", "P1", "P2", "P3", "P4", "P7"])
def test_a_dropout_that_was_moved_trains_as_one_that_was_put_in_its_place(place: str) -> None:
    """The rewrite of a model with its dropouts anywhere is the model with them at P6, to the last bit."""
    torch.manual_seed(1)
    model, compliant = (of_zoo("dropout_preact_resnet", dropout_at=at) for at in (place, "P6"))
    compliant.load_state_dict(model.state_dict())
    rewritten = rewriter.rewrite(model, Dropout(), input_size=32)
    assert all(map(torch.equal, trained(rewritten), trained(compliant)))


def test_that_of_a_post_activation_branch_goes_to_its_end() -> None:
    torch.manual_seed(1)
    model, compliant = (of_zoo("dropout_resnet", dropout_at=at) for at in ("before-last-weight", "end-of-branch"))
    compliant.load_state_dict(model.state_dict())
    rewritten = rewriter.rewrite(model, Dropout(), input_size=32)
    assert all(map(torch.equal, trained(rewritten), trained(compliant)))


@pytest.mark.parametrize("place", ["P5", "P6", "H3", "H4"])
def test_what_the_paper_calls_compliant_is_left(place: str) -> None:
    """P5 and H3 are before the activation, P6 and H4 behind it."""
    plan = rewriter.plan(of_zoo("dropout_preact_resnet", dropout_at=place), Dropout(), input_size=32)
    assert not plan.sites
    done = [skip.pattern for skip in plan.skipped if skip.reason is Reason.ALREADY_DONE]
    assert done == (["head"] if place.startswith("H") else ["residual branch"] * 3)


def test_of_two_dropouts_in_a_branch_one_is_kept() -> None:
    """P6 and P7 together are worse than P6 alone."""
    plan = rewriter.plan(of_zoo("dropout_preact_resnet", dropout_at=("P6", "P7")), Dropout(), input_size=32)
    assert {site.action for site in plan.sites} == {"keep p6, remove p7"}


def test_one_on_the_trunk_beside_one_in_the_branch_is_removed() -> None:
    """They act one after the other, so that one of them can go; at a rate of 0 nobody is alarmed."""
    options = {"dropout_at": ("P0", "P6")}
    made = rewriter.plan(of_zoo("dropout_preact_resnet", **options), Dropout(), input_size=32)
    assert {(site.action, "84.25 %" in site.reason) for site in made.sites} == {
        ("keep p6, remove p0 from the trunk", True)
    }
    off = rewriter.plan(of_zoo("dropout_preact_resnet", **options, drop_rate=0.0), Dropout(), input_size=32)
    assert len(off.inactive) == 3 and not any("84.25 %" in site.reason for site in off.sites)


def test_of_several_dropouts_in_a_head_one_is_kept() -> None:
    made = rewriter.plan(of_zoo("dropout_preact_resnet", dropout_at=("H3", "H4", "H5")), Dropout(), input_size=32)
    assert [site.action for site in made.sites] == ["keep h4, remove h3, remove h5"]
    model: Any = of_zoo("dropout_preact_resnet", dropout_at=("H4", "H5"))
    model.h4.p = 0.1
    made = rewriter.plan(model, Dropout(), input_size=32)
    assert [site.action for site in made.sites] == ["move h5 before pool, remove h4"]


@pytest.mark.parametrize(("rate", "sites"), [(0.2, 0), (0.0, 1)])
def test_a_head_with_a_dropout_that_cannot_move_gets_no_second(rate: float, sites: int) -> None:
    """Those heads have a weight between the pooling and the dropout; a dropout of rate 0 is none."""
    model = torchvision.models.mobilenet_v3_small(dropout=rate)
    made = rewriter.plan(model, Dropout(p=0.2), input_size=64)
    assert len([site for site in made.sites if site.pattern == "head"]) == sites
    (left,) = (skip for skip in made.skipped if skip.pattern == "head")
    assert left.reason is Reason.WEIGHT_BETWEEN and left.inactive is (rate == 0)


@pytest.mark.parametrize("rate", [0.2, 0.0])
def test_what_stays_out_of_place_is_told_unasked_if_it_acts(rate: float) -> None:
    model = of_zoo("dropout_preact_resnet", dropout_at="H6", drop_rate=rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rewritten = rewriter.rewrite(model, Dropout(), input_size=32)
    told = [str(w.message) for w in caught if issubclass(w.category, rewriter.PlaceLeftAlone)]
    assert ["h6" in text for text in told] == ([True] if rate else [])
    assert ("! h6: on-predictions" in str(rewriter.report(rewritten))) is bool(rate)


@pytest.mark.parametrize(("options", "hint"), [({}, "p"), ({"p": 0.2, "head_p": 0}, "head_p")])
def test_an_inactive_head_says_which_option_sets_its_rate(options: dict[str, float], hint: str) -> None:
    model = of_zoo("dropout_preact_resnet", dropout_at="H5", drop_rate=0.0)
    made = rewriter.plan(model, Dropout(**options), input_size=32)
    (site,) = (site for site in made.sites if site.pattern == "head")
    assert site.inactive and f"dropout:{hint}=0.2 sets it" in site.rate_at
    switched_on = rewriter.plan(model, Dropout(**{**options, hint: 0.2}), input_size=32)
    assert not switched_on.inactive


_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet18": {}, "seresnet18": {"drop_path_rate": 0.2}, "resnext26ts": {}, "mobilenetv2_050": {},
    "efficientnet_b0": {"drop_path_rate": 0.2}, "regnety_002": {}, "darknet17": {},
    "swinv2_cr_tiny_ns_224": {"img_size": 64, "window_size": 2},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(["resnet18"], _FAMILIES))
def test_a_branch_that_ends_with_a_norm_is_dropped_behind_it(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **_FAMILIES[name])
    rewritten = rewriter.rewrite(model, Dropout(p=0.2, head_p=0), input_size=64, preserve="nothing")
    trace = rewriter.trace(rewritten, input_size=64)
    flow = trace.train.dataflow
    ending = [b for b in find_branches(flow, rewritten) if b.form == "residual" and b.end.norms]
    assert ending
    for branch in ending:
        dropouts = [node for node in branch.nodes if node.meta["kind"] is Kind.DROPOUT]
        acting = [n for n in dropouts if not isinstance(rewritten.get_submodule(str(n.target)), Bypassed)]
        (dropout,) = (node for node in acting if not holds_attention_weights(node, flow))
        assert flow.is_ancestor(branch.end.norms[0], dropout)
        behind = flow.region(dropout, branch.operand) if dropout is not branch.operand else set()
        assert all(node.meta["kind"] is Kind.IDENTITY or is_stochastic_depth(node, flow) for node in behind)
    again = rewriter.plan(rewritten, Dropout(p=0.2, head_p=0), input_size=64)
    assert not [site for site in again.sites if site.pattern == "residual branch"]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), rewritten.eval()(x))
    assert list(rewritten.state_dict()) == list(model.state_dict())
    restored = rewriter.undo(rewritten)
    assert [type(module) for module in restored.modules()] == [type(module) for module in model.modules()]


@pytest.mark.thorough
def test_it_is_the_output_of_the_norm_that_is_dropped() -> None:
    torch.manual_seed(0)
    model: Any = rewriter.rewrite(torchvision.models.resnet18(), Dropout(p=0.5, head_p=0), input_size=64).train()
    seen: dict[str, torch.Tensor] = {}
    block = model.layer2[0]
    block.bn2.register_forward_hook(lambda module, args, output: seen.update(norm=output.detach().clone()))
    block.dropout.register_forward_hook(lambda module, args, output: seen.update(dropped=output.detach().clone()))
    model(torch.randn(4, 3, 64, 64))
    kept = seen["dropped"] != 0
    assert torch.equal(seen["dropped"][kept], 2 * seen["norm"][kept])
    # of 4 x 128 x 8 x 8 values a share of 0.5 +- 0.014 with a confidence of 1 - 1e-6
    assert abs(kept.float().mean() - 0.5) < 0.014


class Between(nn.Module):
    """A dropout between two blocks, called by neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop, self.head = nn.Conv2d(3, 8, 3), nn.Dropout(0.2), nn.Linear(8, 4)
        self.one, self.two = (torchvision.models.resnet.BasicBlock(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.drop(self.one(self.stem(x)))).amax((2, 3)))


def test_a_dropout_between_two_blocks_is_reported_with_what_it_costs() -> None:
    plan = rewriter.plan(Between(), Dropout(), input_size=16)
    (left,) = (skip for skip in plan.skipped if skip.path == "drop")
    assert not plan.sites and left.reason is Reason.ON_TRUNK and left.pattern == "trunk"
    assert "93.66 % without and 84.25 % with it" in left.detail and "not known which block" in left.detail


class WithoutNorm(nn.Module):
    """A block without a norm, which drops its own sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x + self.conv(x).relu())


def test_a_dropout_on_the_trunk_whose_branch_has_no_place_stays() -> None:
    plan = rewriter.plan(nn.Sequential(WithoutNorm(), WithoutNorm()), Dropout(), input_size=16)
    assert not plan.sites
    assert (Reason.ON_TRUNK, "0.drop") in [(skip.reason, skip.path) for skip in plan.skipped]


class Headed(nn.Module):
    """A pooled head with something between the pooling and the dropout, or a dropout of its predictions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.pool = how, nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.norm: nn.Module = {"batch norm": nn.BatchNorm1d(8), "layer norm": nn.LayerNorm(8)}.get(how, nn.Identity())
        behind = how in ("predictions", "function")
        self.head, self.drop = nn.Linear(8, 4), nn.Identity() if behind else nn.Dropout(0.2)
        self.last: Any = nn.Dropout(0.2) if how == "predictions" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.pool(self.stem(x).relu()).flatten(1)))
        return self.last(self.head(x)) if self.how != "function" else F.dropout(self.head(x), 0.2, self.training)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("batch norm", Reason.NORM_BETWEEN), ("layer norm", None), ("predictions", Reason.ON_PREDICTIONS),
        ("function", Reason.ON_PREDICTIONS), ("plain", None),
    ],
)  # fmt: skip
def test_what_a_head_says_of_its_dropout(how: str, reason: Reason | None) -> None:
    """Before a batch norm it would shift the statistics; behind the classifier a dropped logit makes a large loss."""
    plan = rewriter.plan(Headed(how), Dropout(), input_size=16)
    assert [skip.reason for skip in plan.skipped if skip.pattern == "head"] == ([] if reason is None else [reason])
    assert len(plan.sites) == (reason is None)


class OverItsChildren(nn.Module):
    """A block that runs over its own children, whatever they are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm, self.act, self.weight = nn.BatchNorm2d(8), nn.GELU(), nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for child in self._modules.values() if self.how == "_modules" else self.children():
            y = child(y)  # type: ignore[misc]
        return x + F.conv2d(y, self.weight, padding=1)


@pytest.mark.parametrize("how", ["children", "_modules"])
def test_nothing_is_added_to_a_module_that_runs_over_its_children(how: str) -> None:
    """It would run twice: where it was put, and as one of them."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), OverItsChildren(how), nn.Conv2d(8, 2, 1))
    plan = rewriter.plan(model, Dropout(p=0.5), input_size=16)
    (skip,) = (skip for skip in plan.skipped if skip.pattern == "residual branch")
    assert not plan.sites and skip.reason is Reason.IN_A_LOOP
    assert "runs over its own children" in skip.detail and "nn.ModuleList" in skip.detail


class LeftOutByChance(nn.Module):
    """Blocks of which some are left out in training, as drawn by Python, torch or both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.blocks = nn.ModuleList(torchvision.models.resnet.BasicBlock(8, 8) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or (random.random() < 0.8 and torch.rand(()) < 0.8):
                x = block(x)
        return self.head(x)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plan_does_not_depend_on_what_the_process_has_drawn(device: str) -> None:
    plans = set()
    for seed in range(5):
        random.seed(seed)
        torch.manual_seed(seed)
        state = random.getstate(), torch.get_rng_state()
        with torch.device(device):
            model = LeftOutByChance()
            drawn = random.getstate(), torch.get_rng_state()
        plans.add(str(rewriter.plan(model, Dropout(p=0.2), input_size=16)))
        assert random.getstate() == state[0] == drawn[0] and torch.equal(torch.get_rng_state(), drawn[1])
    assert len(plans) == 1
