"""What a rewrite costs, counted and not timed: no weight is copied, and work grows with depth as the model does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import timm
import torch
from helpers import Allocations, timm_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import rewriter
from rewriter.analysis.heads import find_heads
from rewriter.analysis.residual import find_branches
from rewriter.model.collector import collector_paused
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow


def test_an_edit_in_place_copies_no_weight() -> None:
    model = timm_model("vit_small_patch16_224", proj_drop_rate=0.1, drop_rate=0.1)
    weights = sum(p.nbytes for p in model.parameters())
    plan = rewriter.plan(model, [Dropout(p=0.1)])
    pointers = [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()]
    with Allocations(model) as allocations:
        assert plan.apply(model, inplace=True, verify=False) is model
    assert plan.sites and allocations.bytes < 0.001 * weights
    assert [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()] == pointers
    with Allocations(model) as allocations:
        rewriter.undo(model, inplace=True)
    assert allocations.bytes < 0.001 * weights
    with Allocations(model) as allocations:  # the measure sees a copy
        plan.apply(model, verify=False)
    assert allocations.bytes >= weights


def test_verification_in_place_leaves_every_weight_where_it_is() -> None:
    model = timm_model("test_vit", proj_drop_rate=0.1)
    pointers = [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()]
    rewriter.rewrite(model, [Dropout(p=0.1)], inplace=True)
    assert rewriter.report(model).verified
    assert [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()] == pointers


def test_planning_a_billion_parameters_on_meta_takes_no_memory() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_224", drop_rate=0.1, proj_drop_rate=0.1)
    assert sum(p.numel() for p in model.parameters()) > 1e9
    with Allocations(model) as allocations:
        plan = rewriter.plan(model, [Dropout(p=0.1)])
    assert plan.sites and allocations.bytes < 1e6, f"{allocations.bytes / 1e6:.1f} MB"


def _transformer(blocks: int) -> nn.Module:
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=8, num_heads=2, depth=blocks // 2, num_classes=4,
        drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.1, global_pool="avg",
    )  # fmt: skip


def _gated_resnet(blocks: int) -> nn.Module:
    return ResNet(
        Bottleneck, [blocks // 4] * 4, num_classes=4, channels=(8, 8, 8, 8), drop_rate=0.1,
        block_args={"attn_layer": "se"},
    )  # fmt: skip


class _Calls:
    """Counts the calls of Python and built-in functions in each step."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}

    def of(self, step: str, run: Callable[[], Any]) -> Any:
        calls = 0

        def note(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            return run()
        finally:
            sys.setprofile(None)
            self.count[step] = calls


def _count(build: Callable[[int], nn.Module], blocks: int) -> dict[str, int]:
    with torch.device("meta"):
        model = build(blocks)
    calls = _Calls()
    with collector_paused():  # of what it collects, finalizers would be counted
        traced = calls.of("trace", lambda: rewriter.trace(model, input_size=32))
        flow = calls.of("dataflow", lambda: traced.train.dataflow)
        branches = calls.of("branches", lambda: find_branches(flow, model))
        calls.of("heads", lambda: find_heads(flow, model))
        plan = calls.of("plan", lambda: rewriter.plan(model, [Dropout(p=0.1)], input_size=32))
        calls.of("apply", lambda: plan.apply(model, inplace=True, verify=False))
        calls.of("text", lambda: (str(plan), plan.to_json()))
        calls.of("undo", lambda: rewriter.undo(model, inplace=True))
    assert len(branches) == blocks
    return calls.count


@pytest.mark.parametrize("build", [_transformer, _gated_resnet])
def test_work_grows_with_depth_as_the_model_does(build: Callable[[int], nn.Module]) -> None:
    few, many = _count(build, 24), _count(build, 96)
    growth = {step: many[step] / few[step] for step in few}
    assert max(growth.values()) < 5, growth
