"""All passes together: on a model of every library, in any subset and order, on fresh and on trained weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import transformers
from helpers import assert_unchanged, image, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rewriter
from rewriter.guideline.registry import installed_passes
from rewriter.model.copying import copy_model
from rewriter.reasons import Reason
from rewriter.testing import check_contract

pytestmark = pytest.mark.slow

CORE = ("atrous-rates", "dropout", "group-count", "scale-equalizer", "stochastic-pooling", "weight-decay")
CHANGING = {"atrous-rates", "group-count"}


def classifier() -> nn.Module:
    return timm.create_model("resnet18", norm_layer="groupnorm", drop_rate=0.2, num_classes=10)


def deeplab() -> nn.Module:
    return torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=4)


def feature_pyramid() -> nn.Module:
    return smp.FPN("resnet18", encoder_weights=None)


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16)
    return transformers.SegformerForSemanticSegmentation(config)


def denoiser() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(64, 128), layers_per_block=1, norm_num_groups=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], set[str]]] = {
    # what each is run on, and the passes that edit it or advise
    "timm classifier": (
        classifier,
        {"input_size": 64},
        {"dropout", "group-count", "weight-decay"},
    ),
    "torchvision segmentation": (
        deeplab,
        {"input_size": 256},
        {"atrous-rates", "scale-equalizer", "stochastic-pooling", "weight-decay"},
    ),
    "smp segmentation": (feature_pyramid, {"input_size": 64}, {"group-count", "weight-decay"}),
    "hugging face segmentation": (segformer, {"input_size": 64}, {"scale-equalizer", "weight-decay"}),
    "diffusers U-Net": (
        denoiser,
        {"example_inputs": (torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))},
        {"group-count", "weight-decay"},
    ),
}


def acting(plan: rewriter.Plan) -> set[str]:
    return {finding.pass_name for finding in (*plan.sites, *plan.advice)}


def test_the_core_passes_are_installed_in_their_order() -> None:
    assert set(CORE) == {name for name, cls in installed_passes().items() if cls.default}
    assert [name for name, _ in rewriter.plan(timm.create_model("test_resnet")).passes] == list(CORE)


@pytest.mark.parametrize("name", MODELS)
def test_all_act_together_and_keep_their_contracts(name: str) -> None:
    create, on, expected = MODELS[name]
    torch.manual_seed(0)
    model = create()
    before = snapshot(model)
    rewritten = check_contract(model, None, **on)
    assert_unchanged(model, before)
    report = rewriter.report(rewritten)
    assert acting(report.records[0].plan) >= expected
    assert "passes: atrous-rates" in str(report) and " → weight-decay" in str(report)
    alone = [check for check in report.records[0].verdict.checks if check.alone]
    edited = {site.pass_name for site in (*report.applied, *report.inactive)}
    changing, others = CHANGING & edited, edited - CHANGING
    assert [check.held for check in alone] == ([True] if changing and others else [])


@pytest.fixture(scope="module")
def planned() -> dict[str, tuple[nn.Module, rewriter.Plan]]:
    found = {}
    for name, create in {"deeplab": deeplab, "classifier": classifier, "pyramid": feature_pyramid}.items():
        with torch.device("meta"):
            model = create()
        found[name] = model, rewriter.plan(model, input_size=256)
    return found


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.sampled_from(["deeplab", "classifier", "pyramid"]), st.lists(st.sampled_from(CORE), unique=True, min_size=1))
def test_any_subset_in_any_order_finds_what_all_find(
    planned: dict[str, tuple[nn.Module, rewriter.Plan]], name: str, subset: list[str]
) -> None:
    model, whole = planned[name]
    plan = rewriter.plan(model, subset, input_size=256)
    assert [pass_name for pass_name, _ in plan.passes] == [pass_name for pass_name in CORE if pass_name in subset]
    for pass_name in subset:
        found, expected = plan.findings(pass_name), whole.findings(pass_name)
        if "dropout" not in subset and pass_name == "stochastic-pooling":
            # a place that dropout claims is free without it
            assert {site.path for site in found[0]} >= {site.path for site in expected[0]}
        else:
            assert found == expected


def train(model: nn.Module) -> nn.Module:
    """One step, after which norms have statistics and affine parameters of their own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    outputs = model.train()(image(64))
    outputs = outputs["out"] if isinstance(outputs, dict) else outputs
    outputs.square().mean().backward()
    optimizer.step()
    return model


class TestPreserve:
    @pytest.fixture(scope="class")
    def fresh(self) -> nn.Module:
        torch.manual_seed(0)
        return deeplab()

    @pytest.fixture(scope="class")
    def trained(self, fresh: nn.Module) -> nn.Module:
        return train(copy_model(fresh))

    def test_auto_changes_the_output_of_a_fresh_model_only(self, fresh: nn.Module, trained: nn.Module) -> None:
        assert CHANGING & acting(rewriter.plan(fresh, input_size=256))
        plan = rewriter.plan(trained, input_size=256)
        assert not CHANGING & acting(plan)
        assert {s.reason for s in plan.skipped if s.pass_name == "atrous-rates"} == {Reason.HELD_BACK}
        rewritten = plan.apply(trained)
        x = image(64)
        assert torch.equal(rewritten.eval()(x)["out"], trained.eval()(x)["out"])
        first = str(rewriter.report(rewritten)).splitlines()[0]
        assert first == (
            "held back: atrous-rates, because the model carries trained weights; preserve='nothing' applies them, "
            "and naming a pass applies it (where only the backbone is pretrained); a training that goes on gives its "
            "plan, plan_file="
        )

    def test_eval_holds_back_on_any_model_even_by_name(self, fresh: nn.Module) -> None:
        for passes in (None, "atrous-rates"):
            plan = rewriter.plan(fresh, passes, input_size=256, preserve="eval")
            assert not CHANGING & acting(plan)
            assert plan.notes[0].startswith("held back: atrous-rates, because preserve='eval'")

    def test_nothing_holds_nothing_back(self, trained: nn.Module) -> None:
        plan = rewriter.plan(trained, input_size=256, preserve="nothing")
        assert "atrous-rates" in acting(plan) and not plan.notes

    def test_by_name_it_is_done_with_a_warning(self, trained: nn.Module) -> None:
        plan = rewriter.plan(trained, "atrous-rates", input_size=256)
        assert "atrous-rates" in acting(plan)
        assert plan.notes[0] == "atrous-rates changes the output of trained weights, as asked for by name"

    def test_group_counts_are_held_back_as_well(self) -> None:
        torch.manual_seed(0)
        model = feature_pyramid()
        assert "group-count" in acting(rewriter.plan(model, input_size=64))
        assert "group-count" not in acting(rewriter.plan(train(model), input_size=64))
