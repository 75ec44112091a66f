"""The group-count pass: its choices on real models, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from group_norms import MEASURED, all_measured, autoencoder, conditional_unet, scale_shift_unet, unet
from helpers import assert_unchanged, image, snapshot, timm_model
from torch import nn

import rewriter
from rewriter import testing, zoo
from rewriter.analysis.trained_weights import carries_trained_weights
from rewriter.passes import GroupCount
from rewriter.passes.group_count.layers import GroupNormFunction
from rewriter.passes.group_count.rules import (
    TIE,
)
from rewriter.reasons import Reason

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, rewriter.Plan]:
    model = timm_model("resnetv2_50d_gn")
    return model, rewriter.plan(model, MEASURED, input_size=64)


def test_every_norm_is_set_to_a_divisor_in_the_band_with_its_gains(planned: Any) -> None:
    model, plan = planned
    assert len(plan.sites) > 30
    for site in plan.sites:
        (edit,) = site.edits
        norm = model.get_submodule(edit.path)
        assert edit.name == "num_groups" and edit.value != norm.num_groups == 32
        assert norm.num_channels % edit.value == 0 and edit.value >= 2 and norm.num_channels // edit.value >= 8
        assert site.action.startswith(f"set num_groups 32 -> {edit.value}, gradient gain ")
        assert site.reason.endswith("measured on Gaussian input")


def test_the_text_of_a_plan_names_the_gains_of_every_layer(planned: Any) -> None:
    text = str(planned[1])
    for site in planned[1].sites:
        assert site.action.partition(", ")[2] in text  # no two gains are joined into one set of numbers


def test_pre_activation_norms_have_no_weight_before_them(planned: Any) -> None:
    reasons = {skip.path: skip.reason for skip in planned[1].skipped}
    assert reasons["stages.1.blocks.1.norm1"] == reasons["norm"] == Reason.NO_WEIGHT_BEFORE
    assert reasons.get("stages.1.blocks.1.norm2") in (None, Reason.ALREADY_DONE)


def test_choices_are_the_nearest_to_one_behind_the_chosen_norms_above(planned: Any) -> None:
    """Layer by layer: the gains that the plan names are those of the model that it makes."""
    model, plan = planned
    rewritten = plan.apply(model, verify=False)
    measured = all_measured(rewritten, image(64))
    again = rewriter.plan(rewritten, MEASURED, example_inputs=image(64))
    assert not again.sites
    for site in plan.sites:
        groups, values = site.edits[0].value, measured[site.path]
        assert f"-> {values[groups]:.2f}" in site.action
        band = [g for g in values if g >= 2 and g <= rewritten.get_submodule(site.path).num_channels // 8]
        assert abs(math.log(values[groups])) <= min(abs(math.log(values[g])) for g in band) + TIE
        free = min(values, key=lambda g: abs(math.log(values[g])))
        near = abs(math.log(values[groups])) <= abs(math.log(values[free])) + TIE
        assert near or ", the band decided (" in site.action


@pytest.mark.parametrize("asked", [GroupCount(), MEASURED], ids=["isometry", "measured-isometry"])
def test_only_the_numbers_change_and_planning_touches_nothing(asked: GroupCount) -> None:
    model = timm_model("resnet50_gn", num_classes=10)
    model.train()
    seen: list[str] = []
    model.layer1[0].conv1.register_forward_hook(lambda *_: seen.append("hook"))
    before = snapshot(model)
    rewriter.plan(model, asked, input_size=64)
    assert_unchanged(model, before)
    assert not seen
    rewritten = testing.check_contract(model, asked, input_size=64)
    assert_unchanged(model, before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rewritten.parameters(), strict=True))
    assert {m.num_groups for m in rewritten.modules() if isinstance(m, nn.GroupNorm)} > {8, 32}


def test_a_measured_choice_does_not_depend_on_the_numbers_that_are_there(planned: Any) -> None:
    model, plan = planned
    other = timm_model("resnetv2_50d_gn")
    for path in {site.path for site in plan.sites}:
        other.get_submodule(path).num_groups = 1
    expected, found = (
        plan.apply(model, verify=False),
        rewriter.rewrite(other, MEASURED, input_size=64, verify=False),
    )
    for module, same in zip(expected.modules(), found.modules(), strict=True):
        assert getattr(module, "num_groups", None) == getattr(same, "num_groups", None)


def test_trained_weights_are_held_back_and_fresh_ones_are_not() -> None:
    model = timm_model("resnetv2_50d_gn")
    assert not carries_trained_weights(model)
    assert rewriter.plan(model, input_size=64).findings("group-count")[0]
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.weight.uniform_(0.5, 1.5)
    plan = rewriter.plan(model, input_size=64)
    sites, skipped, _ = plan.findings("group-count")
    held = [skip for skip in skipped if skip.reason is Reason.HELD_BACK]
    assert not sites and held and plan.notes[0].startswith("held back: group-count")
    assert rewriter.plan(model, "group-count", input_size=64).sites  # asked for by name


def test_a_model_without_values_is_measured_in_closed_form() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet50_gn")
    plan = rewriter.plan(model, MEASURED, input_size=224)
    sites = {site.path: site for site in plan.sites}
    assert len(sites) == 53
    assert all(site.reason.endswith("closed form: the model has no values") for site in plan.sites)
    assert "32 -> 2, gradient gain 1.09 -> 1.01, the band decided (1 would have 1.00)" in sites["layer1.0.bn2"].action
    assert sites["layer1.0.bn3"].pattern == "weight → group norm"


def test_a_model_whose_run_cannot_be_repeated_is_planned_in_closed_form(import_text: Any) -> None:
    module = import_text(
        """
        import torch
        from torch import nn

        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.other, self.norm = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 1), nn.GroupNorm(16, 32)
                self.register_buffer("chosen", torch.ones(()))

            def forward(self, x):
                conv = self.conv if x.is_meta else self.other
                return self.norm(conv(x)).relu()
        """
    )
    for rule, values in (("isometry", "drawn"), ("measured-isometry", "its own")):
        plan = rewriter.plan(module.Reads(), GroupCount(rule=rule), input_size=16)
        assert [site.edits[0].value for site in plan.sites] == [{"drawn": 4, "its own": 2}[values]]
        assert f"closed form: the model does not run on {values} values as it was traced" in plan.sites[0].reason


def test_parameters_that_forward_writes_to_are_left_alone(import_text: Any) -> None:
    module = import_text(
        """
        import torch
        from torch import nn

        class Writes(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.GroupNorm(16, 32)
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x):
                with torch.no_grad():
                    self.conv.weight.mul_(0.5)
                    self.count.add_(1)
                return self.norm(self.conv(x)).relu()
        """
    )
    model = module.Writes()
    before = snapshot(model)
    plan = rewriter.plan(model, MEASURED, input_size=16)
    assert plan.sites[0].reason.endswith("measured on Gaussian input")
    assert rewriter.plan(model, GroupCount(), input_size=16).sites[0].reason.endswith("draws of the weights")
    assert_unchanged(model, before)


@pytest.mark.parametrize("make", [unet, conditional_unet, scale_shift_unet, autoencoder])
def test_norms_behind_the_time_embedding_of_diffusion_models_are_set(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make()
    plan = rewriter.plan(model, MEASURED, example_inputs=x)
    in_chains = {site.path for site in plan.sites} | {
        skip.path for skip in plan.skipped if skip.reason is Reason.ALREADY_DONE
    }
    second_norms = {path for path, m in model.named_modules() if path.endswith("norm2") and isinstance(m, nn.GroupNorm)}
    assert in_chains == second_norms and plan.sites
    assert all(site.pattern == "weight → group norm → activation" for site in plan.sites)
    assert all(site.reason.endswith("measured on the given input") for site in plan.sites)
    testing.check_contract(model, MEASURED, example_inputs=x)


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_heads_that_are_called_on_every_level_get_one_number_each(name: str) -> None:
    torch.manual_seed(0)
    entry = zoo.create(f"torchvision:{name}", min_size=64, max_size=64)
    plan = rewriter.plan(entry.model, MEASURED, example_inputs=entry.example_inputs)
    norms = {path for path, module in entry.model.named_modules() if isinstance(module, nn.GroupNorm)}
    done = {skip.path for skip in plan.skipped if skip.reason is Reason.ALREADY_DONE}
    assert len(norms) == 8 and {site.path for site in plan.sites} | done == norms and len(plan.sites) >= 4
    rewritten = plan.apply(entry.model, verify=False)
    assert not rewriter.plan(rewritten, MEASURED, example_inputs=entry.example_inputs).sites


FUNCTIONAL = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 64, 3, bias=False), nn.Linear(64, 5)
        self.gamma, self.beta = nn.Parameter(torch.ones(64)), nn.Parameter(torch.zeros(64))

    def forward(self, x):
        x = F.group_norm(self.conv(x), 32, self.gamma, self.beta, eps=1e-6)
        x = torch.relu(x)
        return self.head(x.mean((2, 3)))
"""


def test_a_number_written_in_the_code_is_redirected(import_text: Callable[[str], ModuleType]) -> None:
    model = import_text(FUNCTIONAL).Net()
    plan = rewriter.plan(model, GroupCount(), input_size=16)
    assert "+        x = self.group_norm(self.conv(x), 32, self.gamma, self.beta, eps=1e-6)" in plan.diff(model)
    rewritten = testing.check_contract(model, GroupCount(), input_size=16)
    assert isinstance(rewritten.group_norm, GroupNormFunction)
    groups, x = rewritten.group_norm.num_groups, image(16)
    assert groups < 32
    expected = F.relu(F.group_norm(model.conv(x), groups, model.gamma, model.beta, eps=1e-6)).mean((2, 3))
    assert torch.equal(rewritten(x), model.head(expected))
    wider = rewriter.plan(rewritten, GroupCount(rule="channels-per-group", channels=32), input_size=16)
    assert [(edit.path, edit.name, edit.value) for edit in wider.edits] == [("group_norm", "num_groups", 2)]


class Other(nn.Module):
    """Norms that are in no chain, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.small = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 12, 1)
        self.read_twice, self.of_input, self.of_sum, self.outside = (
            nn.GroupNorm(8, 32), nn.GroupNorm(1, 3), nn.GroupNorm(8, 32), nn.GroupNorm(1, 12),
        )  # fmt: skip
        self.layer, self.instance, self.batch = nn.LayerNorm(8), nn.InstanceNorm2d(32), nn.BatchNorm2d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.of_input(x))
        z = self.of_sum(y + self.read_twice(y))
        return self.outside(self.small(self.batch(self.instance(self.layer(z)))))


def test_near_misses_are_told_apart() -> None:
    plan = rewriter.plan(Other(), GroupCount(), input_size=8)
    assert not plan.sites
    found = {skip.path: (skip.reason, skip.detail) for skip in plan.skipped}
    assert found == {
        "of_input": (Reason.NO_WEIGHT_BEFORE, "the input comes directly before the norm, not a weight"),
        "read_twice": (Reason.NO_WEIGHT_BEFORE, "the output of conv is not read by the norm alone"),
        "of_sum": (Reason.NO_WEIGHT_BEFORE, "a sum comes directly before the norm, not a weight"),
        "outside": (
            Reason.OUTSIDE_BAND, "12 channels cannot be divided into at least 2 groups of at least 8 channels",
        ),
    }  # fmt: skip
    wider = rewriter.plan(Other(), GroupCount(min_channels_per_group=3), input_size=8)
    assert [site.path for site in wider.sites] == ["outside"]


def test_norms_of_token_mixers_have_no_weight_before_them() -> None:
    with torch.device("meta"):
        model = timm.create_model("poolformer_s12")
    plan = rewriter.plan(model, GroupCount(), input_size=64)
    assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.NO_WEIGHT_BEFORE}
